// One counter for each key, as a Durable Object whose state is in SQLite: POST /KEY adds one. The answer leaves once
// the change is on disk: workerd's output gate.
import { DurableObject } from "cloudflare:workers";

export class Counter extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec("CREATE TABLE IF NOT EXISTS count (id INTEGER PRIMARY KEY, seen INTEGER NOT NULL)");
  }

  async fetch() {
    const { seen } = this.sql
      .exec("INSERT INTO count VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET seen = seen + 1 RETURNING seen")
      .one();
    return new Response(String(seen));
  }
}

export default {
  fetch(request, env) {
    const key = new URL(request.url).pathname.slice(1);
    return env.COUNTERS.get(env.COUNTERS.idFromName(key)).fetch(request);
  },
};
