import { age, duration, gpuHours, interval, moment, number, percent, short } from "../../src/deepcoder_web/static/js/format.js";
import { deepEqual, equal, test } from "./check.js";

test("what is absent is an en dash, and zero is not absent", () => {
  for (const absent of [null, undefined, "", NaN, "x"]) equal(number(absent), "–");
  deepEqual([percent(null), duration(undefined), gpuHours(null), short(""), interval(null), age(null)], new Array(6).fill("–"));
  deepEqual([number(0), percent(0), duration(0)], ["0", "0.0\u00a0%", "0 s"]);
});

test("numbers have as many digits as say something", () => {
  deepEqual([0.123456, 1234.56, 16384, "0.644", -0.00012345].map((v) => number(v)), ["0.123", "1,235", "16,384", "0.644", "-0.000123"]);
});

test("durations have their two largest units", () => {
  deepEqual([59, 61, 3600, 3700, 86_400, 90_000].map(duration), ["59 s", "1 min 1 s", "1 h 0 min", "1 h 1 min", "1 d 0 h", "1 d 1 h"]);
  equal(age("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:02:05Z")), "2 min 5 s");
  equal(duration(-5), "0 s", "a clock that is behind the cluster's shows no negative age");
});

test("digests are told by their first twelve characters, GPU time by the hour", () => {
  equal(short(`sha256:${"ab".repeat(32)}`), "abababababab");
  equal(gpuHours("7200"), "2 GPU-h");
});

test("an estimate has its interval", () => {
  equal(interval({ mean: 0.5, low: 0.25, high: 0.75 }), "50.0\u00a0% (25.0\u00a0% to 75.0\u00a0%)");
});

test("a moment names its zone", () => {
  const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(new Date("2026-01-01T00:00:00Z"));
  const name = zone.find((part) => part.type === "timeZoneName").value;
  equal(moment("2026-01-01T00:00:00Z").endsWith(`:00 ${name}`), true);
  equal(moment(null), "–");
});
