// @ts-check
// The database of the daemon's data folder: its address, the pages' migrations and seeds.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";

/**
 * The database's address: `DATABASE_URL`, else the daemon's private PostgreSQL.
 * @param {string} dataDir
 */
export function databaseUrl(dataDir) {
  if (process.env.DATABASE_URL) return process.env.DATABASE_URL;
  const read = (/** @type {string} */ name) => readFileSync(join(dataDir, name), "utf8").trim();
  return `postgres://convoke:${encodeURIComponent(read("postgres.password"))}@127.0.0.1:${read("postgres.port")}/convoke`;
}

/** @param {string} url */
export function makePool(url) {
  const pool = new pg.Pool({ connectionString: url, max: 8, connectionTimeoutMillis: 15_000, idleTimeoutMillis: 30_000 });
  // The pool replaces a connection that dies while idle; without a listener, the error would end the process.
  pool.on("error", (error) => console.error(`database: an idle connection ended: ${error.message}`));
  return pool;
}

/**
 * Applies the files of `dir` that are not applied yet, in the order of their names, each in a transaction.
 * @param {pg.Pool} pool @param {string} dir
 */
export async function migrate(pool, dir) {
  const client = await pool.connect();
  try {
    // Two servers that start at once do not apply a file twice.
    await client.query("select pg_advisory_lock(7700001)");
    await client.query("create schema if not exists app");
    await client.query("create table if not exists app.migrations (name text primary key, sha256 text not null, applied_at timestamptz not null default now())");
    const { rows } = await client.query("select name, sha256 from app.migrations");
    const applied = new Map(rows.map((row) => [row.name, row.sha256]));
    for (const name of readdirSync(dir).filter((file) => file.endsWith(".sql")).sort()) {
      const text = readFileSync(join(dir, name), "utf8");
      const sum = createHash("sha256").update(text).digest("hex");
      if (applied.get(name) === sum) continue;
      if (applied.has(name)) throw new Error(`migration ${name} was changed after it was applied; add a new file instead`);
      await apply(client, name, text, sum);
    }
  } finally {
    await client.query("select pg_advisory_unlock(7700001)").catch(() => undefined);
    client.release();
  }
}

/** @param {pg.PoolClient} client @param {string} name @param {string} text @param {string} sum */
async function apply(client, name, text, sum) {
  try {
    await client.query("begin");
    await client.query(text);
    await client.query("insert into app.migrations (name, sha256) values ($1, $2)", [name, sum]);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback");
    throw new Error(`migration ${name} failed: ${/** @type {Error} */ (error).message}`);
  }
}

/** Runs the files of `dir`, which add missing rows and change nothing else. @param {pg.Pool} pool @param {string} dir */
export async function seed(pool, dir) {
  for (const name of readdirSync(dir).filter((file) => file.endsWith(".sql")).sort())
    await pool.query(readFileSync(join(dir, name), "utf8"));
}
