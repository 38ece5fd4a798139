// How a client's program tells which of its calls worked: one line of JSON a call.
export const URL = process.argv[2];
export const LONG = "one two three four ".repeat(2000);

export async function tell(calls) {
  for (const [call, make] of Object.entries(calls)) {
    let wrong = null;
    try {
      const result = await make();
      if (!result) wrong = `returned ${result}`;
    } catch (error) {
      wrong = String(error).slice(0, 500);
    }
    console.log(JSON.stringify({ call, wrong }));
  }
}

export async function failsWith(matches, call) {
  try {
    await call();
  } catch (error) {
    if (matches(error)) return true;
    throw error;
  }
  return false;
}
