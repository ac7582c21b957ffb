// Named settings, which this browser keeps.

const STORED = "presets";

export function presets() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

export const save = (name, settings) => store({ ...presets(), [name]: settings });

export function drop(name) {
  const { [name]: _, ...rest } = presets();
  store(rest);
}

const store = (all) => localStorage.setItem(STORED, JSON.stringify(all));
