// A call as Python, as a command line, and as curl; the server writes them.

import { html, useState } from "render/html.js";

/** A button that copies a text to the clipboard. @param {{ label?: string, text: () => string, class?: string }} props */
export function CopyButton({ label = "Copy", text, ...rest }) {
	const [done, setDone] = useState(false);
	const copy = async () => {
		const found = text();
		await navigator.clipboard?.writeText(found).then(() => setDone(true), () => undefined);
		setTimeout(() => setDone(false), 1500);
	};
	return html`<button ...${rest} onClick=${copy}>${done ? "Copied" : label}</button>`;
}

/** @param {{ made: Record<string, string> }} props */
export function Copy({ made }) {
	return html`<details class="copy"><summary>Copy as Python, CLI or curl</summary>
		${Object.entries(made).map(([name, text]) => html`<div key=${name}>
			<div class="snippethead"><h3>${name}</h3><${CopyButton} text=${() => text} /></div>
			<pre tabindex="0" aria-label=${name} data-snippet=${name}>${text}</pre></div>`)}</details>`;
}
