// What the daemon answers (docs/DASHBOARD.md, docs/TASKS.md).

export type TaskState = "blocked" | "scheduled" | "open" | "awarded" | "running" | "verifying" | "waiting" | "canceling" | "completed" | "failed" | "canceled";

export const STATES: readonly TaskState[] = ["open", "awarded", "running", "waiting", "verifying", "blocked", "scheduled", "canceling", "completed", "failed", "canceled"];
export const FINAL: ReadonlySet<string> = new Set(["completed", "failed", "canceled"]);

interface TaskFacts {
  id: string;
  org: string;
  kind: string;
  state: TaskState;
  state_reason: string | null;
  agent_id: string | null;
  requester: string;
  priority: number;
  round: number;
  epoch: number;
  attempt: number;
  attempts_max: number;
  created_at: string;
  updated_at: string;
  deadline_at: string | null;
  parent_id: string | null;
  root_id: string;
  progress: number | null;
}

/** A task without its input and result. */
export interface Line extends TaskFacts {
  version: number;
  depends_on: string[];
  /** What its attempts have used. */
  microdollars: number;
  question: string | null;
  needs: "input" | "approval" | "budget" | "choice" | null;
  input_preview: string | null;
  error: string | null;
  activity: string | null;
  offers: number;
  score: number | null;
  runner_up: number | null;
}

export interface Lines {
  tasks: Line[];
  partial: { scanned_to: string } | null;
}

export const PARTS = ["cost", "speed", "confidence", "load", "reputation"] as const;
export type Part = (typeof PARTS)[number];
export type Weights = Record<Part, number>;
export type Score = Record<Part, number> & { total: number; success?: number; waited: number };
export type Award = "first" | "cheapest" | "fastest" | "least_loaded" | "weighted" | "calibrated" | "direct" | "requester";

export interface Offer {
  agent_id: string;
  state?: string;
  cost_microdollars: number;
  eta_ms: number;
  confidence: number;
  note?: string | null;
  chosen?: boolean;
  offered_at?: string | null;
  valid_until?: string | null;
  score: Score | null;
}

export interface Round {
  round: number;
  award: Award | null;
  weights: Weights | null;
  offers: Offer[];
  winner: string | null;
  because: string | null;
  silent: { agent_id: string; reason: string }[] | Record<string, unknown> | string | null;
  announced_at: string | null;
  bids_close_at: string | null;
  closed_at: string | null;
  awards: { epoch: number; agent_id: string; assignment_id: string; awarded_at: string; confirm_by: string | null }[];
}

export interface Attempt {
  assignment_id: string;
  epoch: number;
  agent_id: string;
  state: string;
  awarded_at: string | null;
  started_at: string | null;
  ended_at: string | null;
  confirm_by: string | null;
  lease_until: string | null;
  progress_at: string | null;
  deadline_at: string | null;
  progress: number | null;
  activity: string | null;
  error: string | null;
  paid: { tokens: number | null; microdollars: number | null; presumed: boolean } | null;
}

export interface Amount {
  max: number | null;
  reserved: number;
  spent: number;
}

export interface Task extends TaskFacts {
  requires: string[];
  run_at: string | null;
  depends_on: string[];
  question: { question?: string; for?: string; agent_id?: string; asked_at?: string } | null;
  budget?: Record<string, { tokens: Amount; microdollars: Amount }> | null;
  input: unknown;
  result: unknown;
  error: unknown;
}

/** A step of an agent that thinks. Viewers get no contents. */
export interface Step {
  seq: number;
  kind: "note" | "model" | "tool";
  state: string;
  tries: number;
  began_at: string | null;
  ended_at: string | null;
  name?: string | null;
  effect?: string | null;
  args?: unknown;
  result?: unknown;
  [more: string]: unknown;
}

export interface Run {
  run: number;
  agent_id: string;
  model: string | null;
  started_at: string | null;
  ended_at: string | null;
  ended_as: string | null;
  tokens: number;
  microdollars: number;
  steps: Step[];
}

export interface Why {
  task: Task;
  /** How the next award is made. */
  award: Award | null;
  runs: Run[];
  rounds: Round[];
  attempts: Attempt[];
  paid: { tokens: number; microdollars: number; presumed: boolean };
  waits_for: unknown;
}

export interface TaskEvent {
  seq: number;
  at: string;
  agent_id: string | null;
  epoch: number | null;
  type: string;
  body: unknown;
}

export interface Overview {
  at: string;
  /** The last digest whose changes it contains; null without a subscriber. */
  n: number | null;
  org: string;
  states: Partial<Record<TaskState, number>>;
  needs: Record<string, number>;
  oldest_open_at: string | null;
  ended: { window: string; completed: number; failed: number; canceled: number; partial: boolean };
  agents: { present: number; known: number; busy: number; slots: number; slots_used: number };
  awards: Negotiation[];
  health: { status: string; version: string; parts: Record<string, { state: string; detail: string }> };
}

export interface Negotiation {
  task_id: string;
  kind: string | null;
  state: TaskState | null;
  input_preview: string | null;
  at: string;
  agent_id: string;
  epoch: number;
  round: number;
  award: Award;
  weights: Weights | null;
  offers: Offer[];
  offers_in_all: number;
}

export interface Statistics {
  completed: number;
  failed: number;
  refused: number;
  late: number;
  latency_ms: number | null;
  cost_microdollars: number | null;
  reputation: number;
  calibration: { confidence: string; attempts: number; completed: number }[];
}

export interface Agent {
  id: string;
  org: string;
  kind: string;
  description: string;
  capabilities: string[];
  slots: number;
  slots_used: number;
  status: string;
  incarnation: number;
  reputation: number;
  statistics: Record<string, Statistics>;
  last_seen_at: string | null;
  drained_at: string | null;
  drained_by: string | null;
}

/** An agent with what it promises, and what became of its offers since the daemon started. */
export interface AgentLine extends Agent {
  terms: { computed?: boolean; cost_microdollars?: number; confidence?: number; eta?: string; thinks?: string } | null;
  definition_version: number;
  offers: { won: number; lost: Record<string, number> };
  limits: { timeout?: string; tokens_per_task?: number; microdollars_per_hour?: number } | null;
  spent_last_hour: number | null;
  /** Why it is left out. */
  problem: string | null;
}

/** An event of the org; the body of a long one is left out. */
export interface FeedEvent extends TaskEvent {
  task_id: string | null;
  body_bytes: number;
}

export interface Series {
  at: string;
  step_seconds: number;
  /** Seconds since 1970. */
  times: number[];
  values: Record<string, (number | null)[]>;
}

export interface Finding {
  name: string;
  ok: boolean;
  found: string;
  remedy?: string;
}

export interface SessionLine {
  id: string;
  user: string;
  role: string;
  created_at: string;
  seen_at: string;
  expires_at: string;
  browser: string | null;
  is_own: boolean;
}

export interface Flow {
  messages_in: number;
  messages_out: number;
}

export interface ChannelLine {
  topic: string;
  public_members: number;
  private_members: number;
  per_second: Flow;
}

export interface Refusal {
  at: string;
  connection: number | null;
  event: string;
  code: string;
  reason: string;
}

export interface Channel {
  topic: string;
  rooms: {
    private: boolean;
    member_count: number;
    members: { connection: number; role: string; sub: string | null; agent: string | null; joined_at: string; presence_key: string }[];
    per_second: Flow;
    refusals: Refusal[];
  }[];
  refusals: Refusal[];
}

export interface Bar {
  assignment_id: string;
  task_id: string;
  agent_id: string;
  kind: string;
  epoch: number;
  state: string;
  awarded_at: string;
  started_at: string | null;
  ended_at: string | null;
  progress: number | null;
}

export interface Spent {
  hour: string;
  agent_id: string;
  kind: string;
  attempts: number;
  tokens: number;
  microdollars: number;
  presumed: boolean;
  reserved: number;
}

export interface Trigger {
  kind: "wake" | "schedule";
  trigger: string;
  agent_id: string;
  requests: string;
  table?: string;
  events?: string[];
  filter?: string | null;
  /** The columns that decide about a row. */
  reads?: string[];
  coalesces?: boolean;
  cron?: string;
  timezone?: string;
  tasks?: number;
  failed?: number;
  last_at?: string | null;
  last_task?: string | null;
  last_error?: string | null;
}

/** A condition of a wake's filter and a row: NULL (`null`) excludes like `false`. */
export interface TriedCondition {
  condition: string;
  holds: boolean | null;
  columns: string[];
  /** As Postgres writes them, without those that the WAL does not carry. */
  values: Record<string, string | null>;
}

/** What a wake would do with a row. */
export interface Trial {
  event: string;
  listens: boolean;
  outcome: "wakes" | "excluded" | "unfit";
  conditions: TriedCondition[];
  request: { kind: string; input: unknown } | null;
  problem: string | null;
  coalesces: boolean;
}

export interface Burst {
  trigger: string;
  key: string;
  changes: number;
  first_at: string;
  due_at: string | null;
  error: string | null;
}

export interface BulkDone {
  tasks: string[];
  refused: { id: string; reason: string }[];
  more: boolean;
}
