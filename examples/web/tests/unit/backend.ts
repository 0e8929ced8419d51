// What the pages run against: a daemon with a private PostgreSQL, the tables, and the people and rooms of the demo.
import { rmSync } from "node:fs";
import { join } from "node:path";
import type pg from "pg";
import { Daemon, here } from "../../server/daemon.mjs";
import { databaseUrl, makePool, migrate, seed } from "../../server/database.mjs";
import { People } from "../../server/people.mjs";
import { startServer } from "../../server/server.mjs";
import { dataFolder } from "./folder.ts";
import { freePort } from "./port.ts";

export type Server = Awaited<ReturnType<typeof startServer>>;

export class Backend {
  readonly #servers: Server[] = [];

  private constructor(
    readonly dataDir: string,
    readonly daemon: Daemon,
    readonly pool: pg.Pool,
  ) {}

  static async open(): Promise<Backend> {
    const dataDir = dataFolder();
    const daemon = new Daemon({ dataDir, port: await freePort() });
    await daemon.start();
    const backend = new Backend(dataDir, daemon, makePool(databaseUrl(dataDir)));
    await backend.migrate();
    await seed(backend.pool, join(here, "seeds"));
    return backend;
  }

  migrate(): Promise<void> {
    return migrate(this.pool, join(here, "migrations"));
  }

  /** Starts a server beside the others. */
  async serve({ invite, bearerSeconds, dist = "dist" }: { invite?: string; bearerSeconds?: number; dist?: string } = {}): Promise<Server> {
    const secret = this.daemon.secret();
    const people = new People(secret, this.pool, invite, bearerSeconds);
    const server = await startServer({ pool: this.pool, secret, people, daemon: this.daemon.url, dist: join(here, dist), host: "127.0.0.1", port: 0 });
    this.#servers.push(server);
    return server;
  }

  async close(): Promise<void> {
    for (const server of this.#servers) await server.close();
    await this.pool.end();
    await this.daemon.stop();
    rmSync(this.dataDir, { recursive: true, force: true });
  }
}
