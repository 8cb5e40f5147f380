// What tests of the scripts are written with: cases by name, and comparisons that tell both sides.

const cases = [];

export function test(name, body) {
  cases.push({ name, body });
}

// Each case's name, and what it failed with, or null.
export async function results() {
  const found = [];
  for (const { name, body } of cases) {
    try {
      await body();
      found.push([name, null]);
    } catch (error) {
      found.push([name, String(error.stack ?? error)]);
    }
  }
  return found;
}

export function equal(value, expected, about = "") {
  if (!Object.is(value, expected)) fail(value, "is not", expected, about);
}

export function notEqual(value, other, about = "") {
  if (Object.is(value, other)) fail(value, "is", other, about);
}

export function deepEqual(value, expected, about = "") {
  if (!same(value, expected)) fail(value, "is not", expected, about);
}

// Until what has been promised so far has been told.
export const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

function same(a, b) {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => Object.hasOwn(b, name) && same(a[name], b[name]));
}

function fail(value, verb, other, about) {
  throw new Error(`${about && `${about}: `}${shown(value)} ${verb} ${shown(other)}`);
}

function shown(value) {
  return JSON.stringify(value, (_, each) => (typeof each === "number" || each === undefined ? String(each) : each));
}
