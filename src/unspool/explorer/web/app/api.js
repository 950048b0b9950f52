// Calls to the server: JSON, and streams of server-sent events.

/** An error of the server: its message, and the option at fault. */
export class ApiError extends Error {
	/** @param {{ message?: string, param?: string | null, code?: string | null }} error */
	constructor(error, status = 0) {
		super(error.message);
		this.param = error.param ?? null;
		this.status = status;
	}
}

let key = sessionStorage.getItem("unspool-key") ?? "";

/** @param {string} value the API key of the server */
export function setKey(value) {
	key = value;
	sessionStorage.setItem("unspool-key", value);
}

/** @param {string} path @param {object} [body] for POST @param {AbortSignal} [signal] */
async function call(path, body, signal) {
	const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
	const answer = await fetch(path, { headers, signal, ...(body ? { method: "POST", body: JSON.stringify(body) } : {}) }).catch((error) => {
		throw error.name === "AbortError" ? error : new ApiError({ message: "The server does not answer. Is it still running?" });
	});
	if (answer.ok) return answer;
	const { error } = await answer.json().catch(() => ({}));
	throw new ApiError(error ?? { message: `status ${answer.status}` }, answer.status);
}

/** @param {string} path @param {object} [body] for POST @param {AbortSignal} [signal] @returns {Promise<any>} */
export const ask = async (path, body, signal) => (await call(path, body, signal)).json();

/**
 * Call `onEvent` with the name and value of each event of a stream.
 * @param {string} path
 * @param {object} body
 * @param {(name: string, value: any) => void} onEvent
 * @param {AbortSignal} signal
 */
export async function stream(path, body, onEvent, signal) {
	const reader = /** @type {any} */ ((await call(path, body, signal)).body).getReader();
	const decoder = new TextDecoder();
	let text = "";
	for (;;) {
		const { done, value } = await reader.read();
		if (done) return;
		text += decoder.decode(value, { stream: true });
		const blocks = text.split("\n\n");
		text = blocks.pop() ?? "";
		for (const block of blocks) {
			const data = /^data: (.*)$/m.exec(block)?.[1];
			if (data === undefined) continue;
			const found = JSON.parse(data);
			if (found.error) throw new ApiError(found.error);
			onEvent(/^event: (.*)$/m.exec(block)?.[1] ?? "", found);
		}
	}
}
