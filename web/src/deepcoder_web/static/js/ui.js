// The one place that knows which library draws: everything else takes `html` and the hooks from here.
// Strings become text nodes, never markup, so a rollout that contains tags is shown as it is.

import htm from "../vendor/htm.mjs";
import { h, render } from "../vendor/preact.mjs";

export { render };
export { useCallback, useEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";

export const html = htm.bind(h);
