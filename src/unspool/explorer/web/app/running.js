// One running generation: its text, its growing trace and its result.

import { useEffect, useMemo, useRef, useState } from "render/html.js";
import { mergeTrace, readTrace } from "render/trace_model.js";
import { stream } from "app/api.js";

/** @type {Run} */
const IDLE = { busy: false, error: null, start: null, chunks: [], tentative: "", trace: null, done: null, body: null };

/**
 * @param {boolean} atOnce true to run when the view opens, as a link asks
 * @param {any} wanted the body of that run
 */
export function useRun(atOnce, wanted) {
	const [run, setRun] = useState(IDLE);
	const controller = useRef(/** @type {any} */ (null));
	const stop = () => {
		controller.current?.abort();
		setRun((run) => ({ ...run, busy: false }));
	};
	const begin = async (body) => {
		controller.current?.abort();
		const own = new AbortController();
		controller.current = own;
		/** @type {Run} */
		let now = { ...IDLE, busy: true, body };
		let frame = 0;
		const show = () => {
			frame ||= requestAnimationFrame(() => {
				frame = 0;
				if (controller.current === own) setRun(now);
			});
		};
		setRun(now);
		try {
			await stream("explore/generate", body, (name, value) => {
				if (name === "start") now = { ...now, start: value };
				if (name === "delta") now = { ...now, trace: mergeTrace(now.trace, value) };
				if (name === "chunk") now = { ...now, chunks: [...now.chunks, value], tentative: value.tentative ?? (value.token_ids.length ? "" : now.tentative) };
				if (name === "done") now = { ...now, done: value, trace: value.trace, tentative: "", busy: false };
				show();
			}, own.signal);
			now = { ...now, busy: false };
		} catch (error) {
			const { name, message, param = null } = /** @type {any} */ (error);
			now = { ...now, busy: false, error: name === "AbortError" ? null : { message, param } };
		}
		show();
	};
	useEffect(() => {
		if (atOnce) begin(wanted);
		return () => controller.current?.abort();
	}, []);
	const model = useMemo(() => (run.trace && run.trace.nodes.length ? readTrace(run.trace) : null), [run.trace]);
	return { run, model, begin, stop };
}
