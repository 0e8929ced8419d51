// A model with a script: what it answers depends only on how often it has answered in this conversation.
import { type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";

const SCRIPT: readonly (readonly [string, object])[] = [
  ["look", { item: "parcel 9007199254740993" }],
  ["charge", { dollars: 12 }],
  ["finish", { result: { shipped: true } }],
];

interface Message {
  role: string;
}

/** An endpoint of a model on a free port. */
export class Model {
  private constructor(readonly server: Server) {}

  static async open(): Promise<Model> {
    const server = createServer((request, response) => {
      let body = "";
      request.on("data", (part: Buffer) => (body += part.toString()));
      request.on("end", () => {
        const { messages } = JSON.parse(body) as { messages: Message[] };
        const [name, args] = SCRIPT[messages.filter(({ role }) => role === "assistant").length] ?? ["give_up", {}];
        const call = { index: 0, id: "call_0", type: "function", function: { name, arguments: JSON.stringify(args) } };
        const message = { role: "assistant", content: null, tool_calls: [call] };
        const usage = { prompt_tokens: 100, completion_tokens: 10, total_tokens: 110 };
        response.setHeader("content-type", "application/json");
        response.end(JSON.stringify({ model: "scripted-1", usage, choices: [{ index: 0, finish_reason: "tool_calls", message }] }));
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new Model(server);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/v1`;
  }

  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}
