// Templates without a build step: htm's tagged templates make preact's elements. Text is always a text node.

import { Component, h, render } from "preact";
import htm from "htm";

/** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */
export const html = htm.bind(h);
export { render };
export { useEffect, useMemo, useRef, useState } from "preact/hooks";

/** A part that is drawn again only if `data`, or `of`, a text with all else that it shows, changes. */
/** @extends {Component<{ of: string, data?: any, draw: () => any }>} */
export class Kept extends Component {
	/** @param {any} next */
	shouldComponentUpdate({ of, data }) {
		return of !== this.props.of || data !== this.props.data;
	}

	render() {
		return this.props.draw();
	}
}

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
