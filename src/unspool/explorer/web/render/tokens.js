// Texts of tokens, safe to show: characters that are invisible or change the direction of text get a visible form.

import { html, roving } from "render/html.js";

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** @param {string} character */
function picture(character) {
	const code = character.charCodeAt(0);
	if (character === "\n") return "⏎";
	if (character === "\t") return "⇥";
	if (code < 0x20) return String.fromCharCode(0x2400 + code);
	return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/**
 * Return a text cut to a number of characters.
 * @param {string} text
 * @param {number} limit
 */
export function short(text, limit) {
	if (text.length <= limit) return text;
	return Array.from(text.slice(0, limit * 2)).slice(0, limit - 1).join("") + "…";
}

/**
 * Return a token's text with visible spaces.
 * @param {string} text
 * @param {number} [limit] most characters to show
 */
export function visible(text, limit = 40) {
	if (text === "") return "∅";
	return short(short(text, 400).replace(HIDDEN, picture).replace(/ /g, "␣"), limit);
}

/**
 * Return a text for reading: real spaces and line ends, and visible forms of other hidden characters.
 * @param {string} text
 * @param {number} [limit]
 */
export function readable(text, limit = 2000) {
	return short(text, limit).replace(HIDDEN, (each) => (each === "\n" ? "⏎\n" : picture(each)));
}

/** A probability as a text. @param {number | null | undefined} value */
export function percent(value) {
	if (typeof value !== "number") return "–";
	const shown = value * 100;
	if (value > 0 && shown < 0.01) return "<0.01%";
	return `${shown.toFixed(shown < 10 ? 2 : 1)}%`;
}

/** @param {number | null | undefined} value */
export function number(value, digits = 3) {
	return typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** Options as texts: a name and a value each. @param {Record<string, any>} options */
export const settings = (options) => Object.entries(options).map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);

/** @param {number | null} logprob */
export const exp = (logprob) => (logprob === null ? 0 : Math.min(1, Math.exp(logprob)));

/**
 * A token by itself.
 * @param {{ text: string, limit?: number }} props
 */
export function Token({ text, limit }) {
	return html`<bdi class="token">${visible(text, limit)}</bdi>`;
}

/** How improbable a token was, from 0 for certain to 1 for a probability below 0.1 %. @param {number | null} p */
const surprise = (p) => (p === null ? 0 : Math.min(1, -Math.log(Math.max(p, 1e-9)) / 7));

/**
 * Running text behind its prompt, one span per token, tinted by how improbable each token was. With `onSelect`, each
 * token is a button.
 * @param {{ pieces: Piece[], selected?: number | null, tail?: string, before?: string, onSelect?: (index: number) => void }} props
 */
export function TokenText({ pieces, selected = null, tail = "", before = "", onSelect }) {
	return html`<div class="text" onKeyDown=${(event) => onSelect && roving(event, onSelect)}>${before && html`<span class="before">${readable(before, 600)}</span>`}${pieces.map((piece, index) => {
		const p = piece.probability;
		const common = { key: index, class: "piece", style: { "--s": surprise(p) }, "data-probability": p, title: percent(p) };
		const text = readable(piece.text);
		return onSelect ? html`<button ...${common} tabindex=${index === (selected ?? 0) ? 0 : -1} aria-pressed=${index === selected} onClick=${() => onSelect(index)} onMouseEnter=${() => onSelect(index)}>${text}</button>`
			: html`<span ...${common}>${text}</span>`;
	})}${tail && html`<span class="tail">${readable(tail)}</span>`}</div>`;
}
