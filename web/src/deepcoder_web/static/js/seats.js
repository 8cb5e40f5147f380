// How many streams all pages of one browser hold: it has six connections to a server that speaks HTTP/1.1, and the
// requests of every page have to find one free. A seat is a lock of the browser's, which it takes back by itself when a
// page is closed or crashes. Where there are no locks (no HTTPS, and not loopback) nothing is counted.

const SEATS = 4;

// A function that gives the seat back, or null where pages hold them all.
export async function takeSeat(locks = navigator.locks) {
  if (!locks) return () => undefined;
  for (let at = 0; at < SEATS; at++) {
    const back = await tryLock(locks, `deepcoder-stream-${at}`);
    if (back) return back;
  }
  return null;
}

// The lock is held for as long as the callback's promise is open.
function tryLock(locks, name) {
  return new Promise((resolve, reject) => {
    const held = (lock) => (lock ? new Promise((back) => resolve(back)) : resolve(null));
    locks.request(name, { ifAvailable: true }, held).catch(reject);
  });
}
