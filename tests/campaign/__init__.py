"""The reliability campaign: ``make campaign`` runs it, ``make test`` a sample of each part."""
