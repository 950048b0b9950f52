// Types of the explorer's modules, for `tsc` alone. The browser never loads this file.

import type { Model, Trace } from "./render/trace_model.js";

export type EntrySetting = { name: string; strategy: string; options: Record<string, any> };

export type State = {
  view: string;
  model: string | null;
  prompt: string;
  path: [number, string][];
  run: boolean;
  next: Record<string, any>;
  tree: [number, number, string][];
  at: number;
  strategy: string;
  options: Record<string, any>;
  seed: number;
  step: number | null;
  entries: EntrySetting[];
  tokens: number;
  pick: number | null;
};

declare global {
  type Piece = { text: string; probability: number | null };
  type ViewProps = { facts: any; state: State; update: (patch: Partial<State>) => void };
  type Run = {
    busy: boolean;
    error: { param: string | null; message: string } | null;
    start: any;
    chunks: any[];
    tentative: string;
    trace: Trace | null;
    done: any;
    body: any;
  };
}
