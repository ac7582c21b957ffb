// How answers are drawn: each parameter's kind, limits and value if neither reader nor model chooses one.

export const PARAMETERS = [
  { name: "reasoning_effort", kind: "choice", choices: ["none", "low", "medium", "high"], otherwise: "unset" },
  { name: "temperature", kind: "number", min: 0, max: 100, step: 0.1, otherwise: 1 },
  { name: "top_p", kind: "number", min: 0, max: 1, step: 0.05, otherwise: 1 },
  { name: "top_k", kind: "integer", min: 0, max: 2147483647, step: 1, otherwise: 0 },
  { name: "min_p", kind: "number", min: 0, max: 1, step: 0.01, otherwise: 0 },
  { name: "repetition_penalty", kind: "number", min: 0.01, max: 100, step: 0.05, otherwise: 1 },
  { name: "presence_penalty", kind: "number", min: -100, max: 100, step: 0.1, otherwise: 0 },
  { name: "frequency_penalty", kind: "number", min: -100, max: 100, step: 0.1, otherwise: 0 },
  { name: "max_tokens", kind: "integer", min: 1, max: 2147483647, step: 1, otherwise: "all_there_is" },
  { name: "seed", kind: "integer", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, otherwise: "drawn" },
  { name: "stop", title: "stop_strings", kind: "lines", otherwise: "nothing" },
];
