// Runs modules that export_js wrote. Each line of the input is a request in JSON, each line of the output its answer.
import { pathToFileURL } from "node:url";
import { createInterface } from "node:readline";

const ARRAYS = { "|i1": Int8Array, "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array };
const modules = [];

const encode = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

function decode({ dtype, data }) {
  const bytes = Buffer.from(data, "base64");
  return new ARRAYS[dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

/** A function from the number of a row to that row. */
function rows(given, n) {
  if (given === null) return () => undefined;
  const array = decode(given);
  const size = array.length / n;
  return (i) => array.subarray(i * size, (i + 1) * size);
}

function observations(given, n) {
  const parts = given.map(([key, values]) => [key, rows(values, n)]);
  if (parts.length === 1 && parts[0][0] === null) return parts[0][1];
  return (i) => Object.fromEntries(parts.map(([key, row]) => [key, row(i)]));
}

/** For each row a policy with what it remembers there; the module itself where the student has no memory. */
function policies(module, state, n) {
  const before = rows(state, n);
  return Array.from({ length: n }, (_, i) =>
    state === null ? module : Object.assign(new module.Policy(), { state: before(i) }),
  );
}

function run(module, { n, given, masks, random, state }) {
  const [observation, mask, bits] = [observations(given, n), rows(masks, n), rows(random, n)];
  const players = policies(module, state, n);
  const values = players.flatMap((player, i) => Array.from(player.outputs(observation(i))));
  const choose = (player, i) =>
    random === null ? player.act(observation(i), mask(i)) : player.sample(observation(i), bits(i), mask(i));
  const actions = players.map(choose).flatMap((action) => (typeof action === "number" ? [action] : Array.from(action)));
  const states = state === null ? [] : players.flatMap((player) => Array.from(player.state));
  return {
    actions: encode(Float64Array.from(actions)),
    outputs: encode(Float32Array.from(values)),
    state: encode(Int8Array.from(states)),
  };
}

function trace(module, { n, given, state }) {
  const observation = observations(given, n);
  const traced = policies(module, state, n).map((player, i) => player.trace(observation(i)));
  return { steps: traced[0].map((_, step) => encode(Int32Array.from(traced.flatMap((x) => Array.from(x[step]))))) };
}

/** The median processor time of an action in seconds, and the memory of this process. */
function measure(module, { n, given, seconds }) {
  const observation = observations(given, n);
  const player = module.student.history > 1 ? new module.Policy() : module;
  const repeat = (end) => {
    const times = [];
    for (let i = 0; times.length < 20 || performance.now() < end; i++) {
      const before = process.cpuUsage();
      for (let k = 0; k < 20; k++) player.act(observation((i + k) % n));
      const used = process.cpuUsage(before);
      times.push((used.user + used.system) / 20e6);
    }
    return times.sort((a, b) => a - b)[times.length >> 1];
  };
  repeat(performance.now() + 100 * seconds);
  return { seconds: repeat(performance.now() + 1000 * seconds), memory: process.memoryUsage.rss() };
}

const METHODS = { run, trace, measure };

async function answer(request) {
  if (request.method !== "load") return METHODS[request.method](modules[request.policy], request);
  modules.push(await import(`${pathToFileURL(request.path)}?${modules.length}`)); // a file of the same name may be another one
  return { policy: modules.length - 1, isChannelsLast: modules.at(-1).student.trunks.some((t) => t.parts[0].isChannelsLast) };
}

for await (const line of createInterface({ input: process.stdin })) {
  let found;
  try {
    found = await answer(JSON.parse(line));
  } catch (error) {
    found = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(found)}\n`);
}
