// The shell: who looks, at what address, in which colours. Addresses are fragments, so a reload stays where it was.

import { get, SIGNED_OUT, token } from "./api.js";
import { Compare } from "./compare.js";
import { Run } from "./run.js";
import { Runs } from "./runs.js";
import { html, render, useEffect, useRef, useState } from "./ui.js";

// An address that was cut off within an escape leads to the list.
function parse(fragment) {
  const [path, query = ""] = fragment.replace(/^#\/?/, "").split("?");
  const [kind, ...parts] = path.split("/").map(decoded);
  const parameters = Object.fromEntries(new URLSearchParams(query));
  if (kind === "runs" && parts[0] && parts[1]) {
    return { page: "run", namespace: parts[0], name: parts[1], tab: parts[2] ?? "overview", parameters };
  }
  if (kind === "compare" && parts.length === 4 && parts.every(Boolean)) {
    const [a, b] = [parts.slice(0, 2), parts.slice(2)].map(([namespace, name]) => ({ namespace, name }));
    return { page: "compare", a, b };
  }
  return { page: "runs" };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}

function useAddress() {
  const [address, setAddress] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = () => setAddress(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return address;
}

function Theme() {
  const [theme, setTheme] = useState(() => localStorage.getItem("deepcoder-theme") ?? "auto");
  useEffect(() => {
    localStorage.setItem("deepcoder-theme", theme);
    document.documentElement.dataset.theme = theme;
    dispatchEvent(new Event("deepcoder-theme"));
  }, [theme]);
  return html`<label class="theme"><span class="word">Theme </span><select value=${theme} onChange=${(e) => setTheme(e.target.value)}>
      <option value="auto">System</option><option value="light">Light</option><option value="dark">Dark</option>
    </select>
  </label>`;
}

function SignIn({ problem, onToken }) {
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    onToken(field.current.value);
  };
  return html`<main class="sign-in" id="main">
    <h1>Sign in</h1>
    <p>Paste a bearer token of your cluster. You see the runs that <code>kubectl get dcr</code> shows you, no others.
      <code>kubectl deepcoder dashboard</code> signs you in by itself.</p>
    <form onSubmit=${submit}>
      <label for="token">Bearer token</label>
      <input id="token" ref=${field} type="password" autocomplete="off" required />
      <button type="submit">Sign in</button>
    </form>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
  </main>`;
}

function Waiting({ problem }) {
  return html`<main class="sign-in" id="main">
    <h1>Please wait</h1>
    <p class="problem" role="alert">${problem}</p>
    <p>The page tries again every few seconds.</p>
  </main>`;
}

function Page({ address }) {
  const { page, namespace, name, a, b } = address;
  const here = JSON.stringify([page, namespace, name, a, b]);
  const before = useRef(here);
  // The link that led here is gone with its page: the focus goes to the new one, and screen readers tell its name.
  useEffect(() => {
    if (before.current !== here) focusMain();
    before.current = here;
  }, [here]);
  if (address.page === "run") return html`<${Run} key=${`${address.namespace}/${address.name}`} ...${address} />`;
  if (address.page === "compare") return html`<${Compare} key=${JSON.stringify(address)} ...${address} />`;
  return html`<${Runs} />`;
}

// How soon it is asked again who looks, where the server could not find out.
const AGAIN_MS = 5_000;

function App() {
  const address = useAddress();
  const [who, setWho] = useState(undefined); // not known yet; null: nobody
  const [problem, setProblem] = useState(null);
  const inside = useRef(false);
  const again = useRef(0);
  const enter = (found) => {
    inside.current = true;
    setProblem(null);
    setWho(found);
  };
  // Only a 401 asks for a token: while the API server is away, nobody's is wrong.
  const ask = () => {
    clearTimeout(again.current);
    get("me").then(enter, (error) => {
      if (error.status === 401) return; // told as every 401 is
      setProblem(error.message);
      again.current = setTimeout(ask, error.retryMs || AGAIN_MS);
    });
  };
  useEffect(() => {
    // Several requests may be refused at once, and nobody has failed who has not given a token yet.
    const lost = ({ detail }) => {
      if (inside.current) setProblem("The token has expired: sign in again.");
      else if (token.get()) setProblem(detail);
      inside.current = false;
      token.clear();
      setWho(null);
    };
    addEventListener(SIGNED_OUT, lost);
    ask();
    return () => removeEventListener(SIGNED_OUT, lost);
  }, []);
  const signIn = (value) => {
    token.set(value);
    setProblem(null);
    ask();
  };
  const signOut = () => {
    token.clear();
    inside.current = false;
    setProblem(null);
    setWho(null);
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header>
      <a class="home" href="#/">DeepCoder</a>
      <span class="spacer"></span>
      <${Theme} />
      ${who && html`<span class="who" title=${`signed in as ${who.user}`}>${who.user}</span>`}
      ${who && token.get() && html`<button type="button" onClick=${signOut}>Sign out</button>`}
    </header>
    ${who && html`<${Page} address=${address} />`}
    ${who === undefined && problem && html`<${Waiting} problem=${problem} />`}
    ${who === null && html`<${SignIn} problem=${problem} onToken=${signIn} />`}`;
}

// A fragment is an address here, so the link moves the focus itself.
function skip(event) {
  event.preventDefault();
  focusMain();
}

function focusMain() {
  const main = document.getElementById("main");
  main?.setAttribute("tabindex", "-1");
  main?.focus();
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
