// Conversations into files and back.

import { post } from "./api.js";
import { ROOT } from "./conversation.js";
import { byId } from "./dom.js";
import { base64 } from "./files.js";
import { toast } from "./toast.js";
import { word } from "./translations.js";

const field = byId("import");

// Entries of a menu that save what is at `path`.
export const exportItems = (path) => [
  { icon: "down", key: "export_markdown", href: `${path}/export?format=markdown` },
  { icon: "down", key: "export_json", href: `${path}/export?format=json` },
];

export const archiveItems = () => [
  { icon: "up", key: "import", act: () => field.click() },
  ...exportItems(ROOT),
];

export function onImport(done) {
  field.addEventListener("change", async () => {
    const [file] = field.files;
    field.value = "";
    if (!file) return;
    try {
      const { conversations } = await post(`${ROOT}/import`, { base64: await base64(file) });
      toast(word("imported", { count: conversations.length }));
      await done();
    } catch (error) {
      toast(error.message);
    }
  });
}
