import { takeSeat } from "../../src/deepcoder_web/static/js/seats.js";
import { equal, test, turn } from "./check.js";

// The browser's locks, for requests that do not wait.
function fakeLocks() {
  const held = new Set();
  return {
    async request(name, { ifAvailable }, use) {
      equal(ifAvailable, true);
      if (held.has(name)) return use(null);
      held.add(name);
      await use({ name });
      held.delete(name);
    },
  };
}

test("four have a seat, the fifth has none until one is given back", async () => {
  const locks = fakeLocks();
  const seats = await Promise.all([1, 2, 3, 4].map(() => takeSeat(locks)));
  equal(await takeSeat(locks), null);
  seats[2]();
  await turn();
  equal(typeof (await takeSeat(locks)), "function");
  equal(await takeSeat(locks), null);
});

test("without locks nobody is turned away", async () => {
  equal(typeof (await takeSeat(null)), "function");
});
