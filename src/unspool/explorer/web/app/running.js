// One running generation: its text, its growing trace and its result.

import { useEffect, useMemo, useRef, useState } from "render/html.js";
import { mergeTrace, readTrace } from "render/trace_model.js";
import { ask, stream } from "app/api.js";

/** @type {Run} */
const IDLE = { busy: false, error: null, start: null, chunks: [], tentative: "", trace: null, done: null, body: null };

/** A state that answers change. `open` aborts the older question, and returns the signal of a new one. @param {any} first */
function useNewest(first) {
	const [now, setNow] = useState(first);
	const controller = useRef(new AbortController());
	const open = () => {
		controller.current.abort();
		return (controller.current = new AbortController()).signal;
	};
	const stop = () => {
		controller.current.abort();
		setNow((now) => ({ ...now, busy: false }));
	};
	useEffect(() => () => controller.current.abort(), []);
	return { now, setNow, open, stop };
}

/**
 * The newest answer of a route. `asked` is the body that it is for, as JSON; `ms` is how long it took.
 * @param {string} path
 */
export function useAnswer(path) {
	const { now, setNow, open, stop } = useNewest({});
	const send = async (body) => {
		const signal = open(), started = performance.now();
		setNow((now) => ({ ...now, busy: true, error: null }));
		const next = await ask(path, body, signal).then((answer) => ({ answer, asked: JSON.stringify(body), ms: performance.now() - started }), (error) => ({ error }));
		if (!signal.aborted) setNow((now) => ({ ...now, busy: false, ...next }));
	};
	return { ...now, send, stop };
}

/**
 * @param {boolean} atOnce true to run when the view opens, as a link asks
 * @param {any} wanted the body of that run
 */
export function useRun(atOnce, wanted) {
	const { now: run, setNow, open, stop } = useNewest(IDLE);
	const begin = async (body) => {
		const signal = open();
		/** @type {Run} */
		let now = { ...IDLE, busy: true, body };
		let frame = 0;
		const show = () => {
			frame ||= requestAnimationFrame(() => {
				frame = 0;
				if (!signal.aborted) setNow(now);
			});
		};
		setNow(now);
		try {
			await stream("explore/generate", body, (name, value) => {
				if (name === "start") now = { ...now, start: value };
				if (name === "delta") now = { ...now, trace: mergeTrace(now.trace, value) };
				if (name === "chunk") now = { ...now, chunks: [...now.chunks, value], tentative: value.tentative ?? (value.token_ids.length ? "" : now.tentative) };
				if (name === "done") now = { ...now, done: value, trace: value.trace, tentative: "" };
				show();
			}, signal);
		} catch (error) {
			now = { ...now, error: /** @type {any} */ (error) };
		}
		now = { ...now, busy: false };
		show();
	};
	useEffect(() => void (atOnce && begin(wanted)), []);
	const model = useMemo(() => (run.trace?.nodes.length ? readTrace(run.trace) : null), [run.trace]);
	return { run, model, begin, stop };
}
