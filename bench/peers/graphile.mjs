// Graphile Worker on the database of the PG… variables; prints its figures as one JSON object.
//   node graphile.mjs tasks JOBS CONCURRENCY     jobs a second: added one by one while they are worked off, and all
//                                                stored in one statement before the workers start
//   node graphile.mjs wake COMMITS RATE          from the commit of a job to the first line of its handler
import { Logger, makeWorkerUtils, run } from 'graphile-worker'
import pg from 'pg'

const ADD = "select graphile_worker.add_job('bench', json_build_object('n', $1::int, 'text', 'a small input of a usual size'))"
const [mode, count, size] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const now = () => Number(process.hrtime.bigint()) / 1e6
// It writes a line for each job otherwise.
const logger = new Logger(() => () => {})
// PG… variables say where the database is; an empty connection string leaves that to them.
const pgPool = new pg.Pool({ max: 30 })

/** Runs workers while `work` runs; `handler` is the handler of each job. `stored` jobs are there before them. */
async function working(concurrency, handler, work, stored = 0) {
    const utils = await makeWorkerUtils({ pgPool, logger })
    await utils.migrate()
    await utils.release()
    await pgPool.query('delete from graphile_worker._private_jobs')
    await pgPool.query(ADD.replace('$1::int', 'n') + ' from generate_series(1, $1::int) n', [stored])
    const started = now()
    const runner = await run({
        pgPool, concurrency, logger, noHandleSignals: true, pollInterval: 1000, taskList: { bench: handler },
    })
    try {
        return await work(started)
    } finally {
        await runner.stop()
    }
}

/** A handler that resolves `finished` with its last job. */
function counting() {
    let done = 0
    let allDone
    const finished = new Promise((resolve) => (allDone = resolve))
    const handler = async () => {
        done += 1
        if (done === count) allDone()
    }
    return { handler, finished }
}

const perSecond = (started) => Math.round((count / (now() - started)) * 1000)

async function tasks() {
    const added = counting()
    const jobs_per_second = await working(size, added.handler, async (started) => {
        let next = 0
        // As many requests at once as the pool has connections left beside the workers.
        const requester = async () => {
            while (next < count) {
                next += 1
                await pgPool.query({ name: 'add', text: ADD, values: [next] })
            }
        }
        await Promise.all(Array.from({ length: 16 }, requester))
        await added.finished
        return perSecond(started)
    })
    const stored = counting()
    const work = async (started) => {
        await stored.finished
        return perSecond(started)
    }
    const stored_jobs_per_second = await working(size, stored.handler, work, count)
    return { jobs_per_second, stored_jobs_per_second }
}

const percentile = (times, percent) => {
    const sorted = [...times].sort((a, b) => a - b)
    return Math.round(sorted[Math.ceil(((sorted.length - 1) * percent) / 100)] * 1000) / 1000
}

async function wake() {
    const committed = new Array(count)
    const handled = new Array(count)
    const commits = []
    let seen = 0
    let allSeen
    const finished = new Promise((resolve) => (allSeen = resolve))
    const handler = async (payload) => {
        handled[payload.n] = now()
        seen += 1
        if (seen === count) allSeen()
    }
    return working(24, handler, async () => {
        const client = new pg.Client()
        await client.connect()
        const started = now()
        for (let n = 0; n < count; n++) {
            const wait = started + (n * 1000) / size - now()
            if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
            const before = now()
            await client.query({ name: 'add', text: ADD, values: [n] })
            committed[n] = now()
            commits.push(committed[n] - before)
        }
        await finished
        await client.end()
        // A handler may begin before the commit is answered.
        const wakes = handled.map((at, n) => Math.max(0, at - committed[n]))
        return {
            commit_p50_ms: percentile(commits, 50), commit_p99_ms: percentile(commits, 99),
            wake_p50_ms: percentile(wakes, 50), wake_p99_ms: percentile(wakes, 99),
        }
    })
}

const modes = { tasks, wake }
if (!(mode in modes) || !(count > 0) || !(size > 0)) {
    console.error('graphile.mjs: tasks JOBS CONCURRENCY, or wake COMMITS RATE')
    process.exit(64)
}
try {
    console.log(JSON.stringify(await modes[mode]()))
} finally {
    await pgPool.end()
}
