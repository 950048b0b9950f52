// The page: its head, the views, and the link that restores each of them.

import { Problem, html, instead, render, useEffect, useState } from "render/html.js";
import { Theme } from "render/theme.js";
import { ask, setKey } from "app/api.js";
import { fromHash, start, toHash } from "app/state.js";
import { CopyButton } from "app/snippets.js";
import { NextView } from "views/next.js";
import { GenerateView } from "views/generate.js";
import { BeamsView } from "views/beams.js";
import { CompareView } from "views/compare.js";
import { SpeculationView } from "views/speculation.js";
import { StructureView } from "views/structure.js";

/** @type {Record<string, [string, any]>} */
const VIEWS = {
	next: ["Next token", NextView],
	generate: ["Generate", GenerateView],
	beams: ["Beam tree", BeamsView],
	compare: ["Compare", CompareView],
	speculation: ["Speculation", SpeculationView],
	structure: ["Structure", StructureView],
};

/** @param {{ facts: any }} props */
function App({ facts }) {
	const [state, setState] = useState(() => fromHash(location.hash, facts) ?? start("next"));
	const [opened, setOpened] = useState(0);
	const update = (patch) => setState((now) => ({ ...now, ...patch }));
	const link = toHash({ ...state, model: facts.model.name });
	useEffect(() => {
		const timer = setTimeout(() => history.replaceState(null, "", link), 150);
		return () => clearTimeout(timer);
	}, [link]);
	useEffect(() => {
		addEventListener("hashchange", () => {
			const found = fromHash(location.hash, facts);
			if (!found) return;
			setState(found);
			setOpened((count) => count + 1);
		});
	}, []);
	const open = (view) => instead(() => {
		if (view === state.view) return;
		const next = start(view, { prompt: state.prompt, assistants: facts.assistants });
		history.pushState(null, "", toHash(next));
		setState(next);
	});
	const share = () => {
		history.replaceState(null, "", link);
		return location.href;
	};
	const [title, View] = VIEWS[state.view];
	document.title = `${title} – Unspool explorer`;
	return html`<header><h1><img src="explore/web/icon.svg" alt="" width="24" height="24" /> Unspool <span>explorer</span></h1>
			<nav aria-label="Views">${Object.entries(VIEWS).map(([name, [text]]) => html`<a key=${name} href=${`#${name}`} onClick=${open(name)}
				aria-current=${name === state.view ? "page" : undefined}>${text}</a>`)}</nav>
			<div class="tools"><span class="model" title=${facts.model.backend}>${facts.model.name}</span>
				<${CopyButton} class="quiet" label="Copy link" text=${share} /><${Theme} /></div></header>
		${state.model !== null && state.model !== facts.model.name && html`<p class="warning" role="status">This link was made with the model
			${" "}${state.model}; this server runs ${facts.model.name}, so the numbers differ.</p>`}
		<main><${View} key=${`${state.view}${opened}`} facts=${facts} state=${state} update=${update} /></main>
		<footer>Unspool ${facts.version}</footer>`;
}

/** Loads the facts; asks for the API key if the server wants one. */
function Loader() {
	const [facts, setFacts] = useState(/** @type {any} */ (null));
	const [error, setError] = useState(/** @type {any} */ (null));
	const load = () => ask("explore/facts").then(setFacts, setError);
	useEffect(() => void load(), []);
	if (facts) return html`<${App} facts=${facts} />`;
	if (!error) return html`<p class="loading">Loading the explorer …</p>`;
	const send = instead((event) => {
		setKey(event.target.key.value);
		load();
	});
	return html`<main><${Problem} message=${error.message} />
		${error.status === 401 && html`<form onSubmit=${send}><label for="key">API key of this server</label>
			<input id="key" name="key" type="password" autocomplete="off" /><button class="primary">Open</button></form>`}</main>`;
}

render(html`<${Loader} />`, document.getElementById("app") ?? document.body);
