// A call as Python, as a command line, and as curl; the server writes them.

import { html, useState } from "render/html.js";

/** @param {{ made: Record<string, string> }} props */
export function Copy({ made }) {
	const [done, setDone] = useState("");
	const copy = async (name, text) => {
		try {
			await navigator.clipboard.writeText(text);
			setDone(name);
		} catch {
			setDone("");
		}
	};
	return html`<details class="copy"><summary>Copy as Python, CLI or curl</summary>
		${Object.entries(made).map(([name, text]) => html`<div class="snippet" key=${name}>
			<div class="snippethead"><h3>${name}</h3><button type="button" onClick=${() => copy(name, text)}>${done === name ? "Copied" : "Copy"}</button></div>
			<pre tabindex="0" aria-label=${name} data-snippet=${name}>${text}</pre></div>`)}</details>`;
}
