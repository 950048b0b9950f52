// Templates without a build step: htm's tagged templates make preact's elements. Text is always a text node.

import { h, render } from "preact";
import { useMemo } from "preact/hooks";
import htm from "htm";

/** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */
export const html = htm.bind(h);
export { render };
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

/** @typedef {{ key: number, group: number, of: string, draw: () => any }} Part `of` is a text with all that the part shows */

/** A part that is drawn again only if `of` changes. @param {Pick<Part, "of" | "draw">} props */
const Kept = ({ of, draw }) => useMemo(draw, [of]);

/**
 * Parts in groups. A change draws only its parts, and the browser lays out and paints only their groups.
 * @param {{ parts: Part[], style: (group: number, size: number) => any }} props
 */
export const Groups = ({ parts, style }) => [...Map.groupBy(parts, ({ group }) => group)].map(([group, found]) =>
	html`<${Kept} key=${group} of=${found.map(({ of }) => of).join()} draw=${() =>
		html`<div class="group" style=${style(group, found.length)}>${found.map((part) => html`<${Kept} ...${part} />`)}</div>`} />`);

/** A handler without the default action of the browser. @param {(event: any) => void} go */
export const instead = (go) => (event) => {
	event.preventDefault();
	go(event);
};

/** @param {{ message?: string | null }} props the message of an error; without one, nothing is shown */
export const Problem = ({ message }) => message && html`<p class="error" role="alert">${message}</p>`;

/** Return a mapping with another value of one name; undefined removes the name. @param {Record<string, any>} values */
export function withValue(values, name, value) {
	const { [name]: _, ...rest } = values;
	return value === undefined ? rest : { ...rest, [name]: value };
}

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -1e9, End: 1e9 };

/** Move the focus among the buttons of a list with the arrow keys, Home and End. @param {(index: number) => void} [onGo] */
export function roving(event, onGo) {
	const buttons = [...event.currentTarget.querySelectorAll("button")];
	const now = buttons.indexOf(document.activeElement);
	const step = STEPS[event.key];
	if (!step || now < 0) return;
	event.preventDefault();
	const to = Math.max(0, Math.min(buttons.length - 1, now + step));
	buttons[to].focus();
	onGo?.(to);
}
