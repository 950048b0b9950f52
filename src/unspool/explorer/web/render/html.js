// Templates without a build step: htm's tagged templates make preact's elements. Text is always a text node.

import { Component, h, render } from "preact";
import htm from "htm";

/** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */
export const html = htm.bind(h);
export { Component, render };
export { useEffect, useMemo, useRef, useState } from "preact/hooks";

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -1e9, End: 1e9 };

/** Move the focus among the buttons of a list with the arrow keys, Home and End. @param {(index: number) => void} [onGo] */
export function roving(event, onGo) {
	const buttons = Array.from(event.currentTarget.querySelectorAll("button"));
	const now = buttons.findIndex((each) => each === document.activeElement);
	const step = STEPS[event.key];
	if (!step || now < 0) return;
	event.preventDefault();
	const to = Math.max(0, Math.min(buttons.length - 1, now + step));
	buttons[to].focus();
	onGo?.(to);
}
