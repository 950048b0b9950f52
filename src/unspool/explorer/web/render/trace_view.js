// A whole trace: the beam tree with its player, the finished hypotheses, and the details of one node.

import { html, useState } from "render/html.js";
import { Token, exp, number, percent, readable, visible } from "render/tokens.js";
import { Player } from "render/player.js";
import { BeamTree, TreeList } from "render/beam_tree.js";
import { hypothesesAt, pathTo, rowOf, treeAt } from "render/trace_model.js";

/**
 * @typedef {import("./trace_model.js").Model} Model
 * @typedef {import("./trace_model.js").Row} Row
 */

/**
 * The model's best tokens at a position, with the processor that cut each.
 * @param {{ row: Row | null, token: number | null, onPick?: (best: import("./trace_model.js").Best) => void }} props
 */
export function Alternatives({ row, token, onPick }) {
	if (!row || !row.best.length) return html`<p class="note">The model was not asked at this position.</p>`;
	return html`<table class="alternatives"><thead><tr><th>token</th><th>model</th><th>drawn</th><th>cut by</th></tr></thead>
		<tbody>${row.best.map((each) => html`<tr key=${each.token} class=${each.token === token ? "chosen" : ""}>
			<td>${onPick && each.token !== token
				? html`<button class="link" title="Branch from here with this token" onClick=${() => onPick(each)}><${Token} text=${each.text} /></button>`
				: html`<${Token} text=${each.text} />`}</td>
			<td class="num" data-probability=${each.probability}>${percent(each.probability)}</td>
			<td class="num">${each.cut_by ? "–" : percent(each.processed_probability)}</td><td>${each.cut_by ?? ""}</td></tr>`)}</tbody></table>
		<p class="note">${row.num_allowed === null ? "" : `${row.num_allowed} tokens allowed`}${row.cuts.map((cut) => ` · ${cut.processor} cut ${cut.count}`)}
			${row.entropy === null ? "" : ` · entropy ${number(row.entropy, 2)} nats`}</p>`;
}

/**
 * One token of an output with its alternatives.
 * @param {{ tokens: ReturnType<typeof import("./trace_model.js").outputTokens>, pick: number | null, onPick?: (best: import("./trace_model.js").Best) => void }} props
 */
export function ChosenToken({ tokens, pick, onPick }) {
	const chosen = tokens[pick ?? -1];
	if (!chosen) return html`<p class="note">Hover over a token, or move to it with Tab and the arrow keys, to see its alternatives.</p>`;
	return html`<section class="details" aria-label="Alternatives"><h3><${Token} text=${chosen.text} />
			<small> token ${(pick ?? 0) + 1}: model ${percent(chosen.probability)}, drawn ${percent(chosen.processed)}</small></h3>
		<${Alternatives} row=${chosen.row} token=${chosen.node.token} onPick=${onPick} />
		${onPick && html`<p class="note">Choose one to branch from there.</p>`}</section>`;
}

/** @param {{ model: Model, id: number }} props */
function NodeDetails({ model, id }) {
	const node = model.nodes[id];
	if (!node || node.token === null)
		return html`<p class="note">Select a token in the picture or in the list to see its alternatives.</p>`;
	const fate = node.dropped_at !== null ? `given up at step ${node.dropped_at}: ${node.why}`
		: node.committed !== null ? `committed at step ${node.committed}` : node.ends !== null ? `ended: ${node.ends}` : node.state;
	return html`<div class="details"><h3><${Token} text=${node.text} /> <small>token ${node.token}</small></h3>
		<dl>${Object.entries({ model: percent(exp(node.logprob)), score: number(node.score), cumulative: number(node.total),
			"made at": `step ${node.step}, branch ${node.branch}`, fate }).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
		<${Alternatives} row=${rowOf(model, node)} token=${node.token} /></div>`;
}

/** @param {{ model: Model, step: number, onSelect: (id: number) => void }} props */
function Hypotheses({ model, step, onSelect }) {
	const found = hypothesesAt(model, step).slice(0, 12);
	return html`<section class="hypotheses"><h3>Finished hypotheses</h3>
		${!found.length && html`<p class="note">None yet.</p>`}
		<ol>${found.map(({ end, score, output }) => html`<li key=${end.id}><button class="link" onClick=${() => onSelect(end.id)}
				data-score=${score} data-output=${output}>
			<span class="num">${number(score)}</span> ${output !== null && html`<span class="badge">output ${output + 1}</span>`}
			<span class="reason">${end.ends ?? ""}</span>
			<bdi>${readable(pathTo(model, end.id).map((node) => (node.text.startsWith("<|") ? "" : node.text)).join(""), 160) || visible("")}</bdi></button></li>`)}</ol>
		${found.length > 0 && model.sums === "score" && html`<p class="note">Scores are divided by length to the power of length_penalty.</p>`}</section>`;
}

/**
 * @param {{ model: Model, step?: number, onStep?: (step: number) => void }} props
 */
export function TraceView({ model, step, onStep }) {
	const [ownStep, setOwnStep] = useState(Infinity);
	const [selected, setSelected] = useState(/** @type {any} */ (null));
	const now = Math.min(step ?? ownStep, model.last);
	const tree = { model, ...treeAt(model, now), selected, onSelect: setSelected };
	const note = model.trace.steps[now]?.note ?? null;
	return html`<div>
		<${Player} last=${model.last} step=${now} onStep=${onStep ?? setOwnStep} />
		${note && html`<p class="note" role="status">${note}</p>`}
		<${BeamTree} ...${tree} />
		<p class="key note">${["committed", "live", "given up"].map((each) => html`<span class=${`k ${each}`}>${each}</span>`)}
			<span>● ended · +n given up earlier · numbers are cumulative ${model.sums === "score" ? "scores" : "log-probabilities"}</span></p>
		<div class="columns">
			<section><h3>Tokens as a tree</h3><${TreeList} ...${tree} /></section>
			<section><${NodeDetails} model=${model} id=${selected ?? 0} /><${Hypotheses} model=${model} step=${now} onSelect=${setSelected} /></section>
		</div></div>`;
}
