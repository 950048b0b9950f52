// The button that changes between light and dark; the first choice is the system's.

import { html } from "render/html.js";

const KEY = "unspool-theme";
const page = document.documentElement.dataset;

/** Call a function that needs storage, which a frame of a notebook does not have. @param {() => void} go */
function stored(go) {
	try {
		go();
	} catch {
		page.theme ??= "";
	}
}

function change() {
	const dark = page.theme ? page.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
	page.theme = dark ? "light" : "dark";
	stored(() => localStorage.setItem(KEY, page.theme ?? ""));
}

stored(() => (page.theme = localStorage.getItem(KEY) ?? ""));

export const Theme = () => html`<button class="quiet" onClick=${change} aria-label="Change between light and dark" title="Light or dark">◐</button>`;
