// @ts-check
// The stamp of the page's sources: `--write` puts it into dist/BUILD after a build, without it a stale build fails.
// `--compare FOLDER` also fails if a build in FOLDER differs from dist in a byte.
// tests/it/dashboard/assets.rs computes the same stamp without Node.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const FILES = ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"];

/** The files below a folder, relative to this one. @param {string} folder @returns {string[]} */
function below(folder) {
  return readdirSync(join(here, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    return entry.isDirectory() ? below(path) : [path];
  });
}

const hash = createHash("sha256");
for (const file of [...FILES, ...below("src")].sort()) {
  const bytes = readFileSync(join(here, file));
  hash.update(`${file}\0${bytes.length}\0`).update(bytes);
}
const stamp = hash.digest("hex");
const build = join(here, "dist/BUILD");
const fail = () => {
  console.error("web/dashboard/dist was built from other sources or by other tools: run `make dashboard` and commit the result");
  process.exit(1);
};
if (process.argv.includes("--write")) writeFileSync(build, `${stamp}\n`);
else if (readFileSync(build, "utf8").trim() !== stamp) fail();
const other = process.argv[process.argv.indexOf("--compare") + 1];
if (process.argv.includes("--compare") && other) {
  const committed = below("dist").filter((file) => file !== "dist/BUILD").map((file) => file.replace("dist/", ""));
  const fresh = below(other).map((file) => file.replace(`${other}/`, ""));
  const same = committed.length === fresh.length && committed.every((file) => fresh.includes(file) && readFileSync(join(here, "dist", file)).equals(readFileSync(join(here, other, file))));
  if (!same) fail();
}
