// Controls of a recording: play, pause, step and scrub.

import { html, useEffect, useState } from "render/html.js";

/**
 * @param {{ last: number, step: number, onStep: (step: number) => void }} props
 */
export function Player({ last, step, onStep }) {
	const [playing, setPlaying] = useState(false);
	useEffect(() => {
		if (step >= last) setPlaying(false);
		const timer = playing && step < last && setTimeout(() => onStep(step + 1), 350);
		return () => clearTimeout(timer || undefined);
	}, [playing, step, last]);
	const go = (to) => {
		setPlaying(false);
		onStep(Math.max(0, Math.min(last, to)));
	};
	const play = () => {
		if (!playing && step >= last) onStep(0);
		setPlaying(!playing);
	};
	const button = (label, sign, to) => html`<button onClick=${() => go(to)} aria-label=${label} title=${label}>${sign}</button>`;
	return html`<div class="player" role="group" aria-label="Steps">
		${button("First step", "|◀", 0)}${button("Step back", "◀", step - 1)}
		<button class="play" onClick=${play}>${playing ? "Pause" : "Play"}</button>
		${button("Step forward", "▶", step + 1)}${button("Last step", "▶|", last)}
		<input type="range" min="0" max=${last} value=${step} aria-label="Step"
			onInput=${(event) => go(Number(event.target.value))} />
		<output>step ${step} of ${last}</output>
	</div>`;
}
