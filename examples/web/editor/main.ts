import { defaultKeymap } from "@codemirror/commands";
import { EditorState } from "@codemirror/state";
import { EditorView, keymap, placeholder } from "@codemirror/view";
import { yCollab, yUndoManagerKeymap } from "y-codemirror.next";
import * as Y from "yjs";
import { CollaborativeEditor } from "../lib/CollaborativeEditor.ts";
import { PresenceManager, presenceKey } from "../lib/PresenceManager.ts";
import { hash } from "../lib/ids.ts";
import { find, framed, guardLeaving, hue, notice, readAtStart, showPeople, showSending, startApp } from "../lib/ui.ts";

/** Maximum characters of one paste: with its metadata it must fit one row of the table. */
const PASTE_MAX = 3_000_000;

const app = await startApp("Editor");
const id = new URLSearchParams(location.search).get("doc") ?? "welcome";
const mine = (await readAtStart(() => app.client.from("members").select("role").eq("topic", `doc:${id}`).eq("user_id", app.me.id).returns<{ role: string }[]>()))[0];
const mayWrite = mine !== undefined && mine.role !== "reader";
const color = `hsl(${hue(app.me.id)} 70% 65%)`;
const editor = new CollaborativeEditor(
  app.client, app.rooms, id,
  { id: app.me.id, name: app.nameOf(app.me.id), color, colorLight: `hsl(${hue(app.me.id)} 70% 65% / 0.3)` },
  app.tab, mayWrite, presenceKey(app.me.id, app.tab),
);
const presence = new PresenceManager(editor.room, { user: app.me.id, tab: app.tab, name: app.me.name, client: editor.doc.clientID });

// Undo affects only the person's own input: the binding's transactions are the only tracked origin.
const undoManager = new Y.UndoManager(editor.text, { captureTimeout: 500 });

/** Refuses a paste that is too large for a row, before it is in the text. */
const limit = EditorState.transactionFilter.of((transaction) => {
  let inserted = 0;
  if (transaction.isUserEvent("input")) transaction.changes.iterChanges((_from, _to, _b, _c, text) => (inserted += text.length));
  if (inserted <= PASTE_MAX) return transaction;
  notice(`At most ${PASTE_MAX.toLocaleString()} characters are pasted at once; these are ${inserted.toLocaleString()}.`, "problem");
  return [];
});

const view = new EditorView({
  parent: find(".page"),
  state: EditorState.create({
    doc: editor.text.toString(),
    extensions: [
      keymap.of([...yUndoManagerKeymap, ...defaultKeymap]),
      EditorView.lineWrapping,
      EditorView.contentAttributes.of({ "aria-label": "Text", spellcheck: "true", tabindex: "0" }),
      placeholder(mayWrite ? "Write something. Others see it as you type." : ""),
      EditorState.readOnly.of(!mayWrite),
      EditorView.editable.of(mayWrite),
      limit,
      yCollab(editor.text, editor.awareness, { undoManager }),
    ],
  }),
});

const show = framed(() => {
  const text = editor.text.toString();
  const data = document.documentElement.dataset;
  data.count = String(text.length);
  data.hash = String(hash(text));
  data.cursors = [...editor.awareness.getStates()].filter(([client, state]) => client !== editor.doc.clientID && state.cursor).length.toString();
  const saved = find(".saved");
  saved.classList.toggle("read-only", !mayWrite);
  saved.textContent = mayWrite ? (editor.unsaved ? "saving…" : "saved") : "You may only read.";
});
editor.on("change", show);
editor.on("change", showSending(() => editor.unsaved));
editor.on("problem", (text) => notice(text, "problem"));
editor.room.on("status", (status, detail) => {
  show();
  if (status === "refused") notice(detail, "problem");
  if (status === "loading" && detail) notice(detail, "problem");
});
editor.room.on("system", ({ message }) => {
  if (mayWrite) notice(message, "problem");
});
presence.on("failed", (text) => notice(text, "problem"));
showPeople(app, presence);
presence.on("join", () => editor.came());
presence.on("leave", (tabs) => tabs.forEach((tab) => typeof tab.client === "number" && editor.left(tab.client)));
guardLeaving(() => editor.atRisk);
const title = (await readAtStart(() => app.client.from("documents").select("title").eq("id", id).returns<{ title: string }[]>()))[0]?.title;
find(".title").textContent = title ?? "No such document";
show();
if (mayWrite) view.focus();
