// The page: it steps the physics in real time, asks the policy for each action, and draws. `policy`, `physics` and PUSH are
// put before this script by build.py.

const NAMES = ["position", "velocity", "angle", "angular velocity"];
const ACTIONS = ["left", "right"];
const WAIT = 1.2; // seconds from a fall to the next start

const byId = (id) => document.getElementById(id);
const world = { state: null, before: null, seconds: 0, longest: 0, pushes: 0, falls: 0, waiting: 0, push: 0, isPaused: false };

function restart() {
  world.state = physics.reset(Array.from({ length: 4 }, Math.random));
  world.before = world.state;
  world.seconds = 0;
  world.waiting = 0;
}

/** One step of 0.02 s. */
function advance() {
  if (world.waiting > 0) {
    world.waiting -= physics.SECONDS;
    if (world.waiting <= 0) restart();
    return;
  }
  world.before = world.state;
  world.state = physics.step(world.state, policy.act(world.state), world.push);
  world.seconds += physics.SECONDS;
  world.longest = Math.max(world.longest, world.seconds);
  if (physics.hasEnded(world.state)) {
    world.falls += 1;
    world.waiting = WAIT;
  }
}

// -- drawing ---------------------------------------------------------------------------------------------------------

/** Draw between the last two states: `share` of the way from the older one. */
function draw(share) {
  const [x, , theta] = world.state.map((value, i) => world.before[i] + share * (value - world.before[i]));
  byId("cart").setAttribute("transform", `translate(${x.toFixed(4)} 0)`);
  byId("pole").setAttribute("transform", `rotate(${((theta * 180) / Math.PI).toFixed(3)})`);
  byId("from-left").classList.toggle("on", world.push > 0);
  byId("from-right").classList.toggle("on", world.push < 0);
  byId("message").textContent = world.waiting > 0 ? "It fell. Another try…" : "";
  byId("seconds").textContent = world.seconds.toFixed(1);
  byId("longest").textContent = world.longest.toFixed(1);
  byId("pushes").textContent = world.pushes;
  byId("falls").textContent = world.falls;
  drawNumbers();
}

function drawNumbers() {
  const traced = policy.trace(world.state);
  const [grid, sums] = [traced[0], traced[traced.length - 1]];
  const action = policy.act(world.state);
  fill("inputs", (cells, i) => {
    cells[1].textContent = world.state[i].toFixed(3);
    cells[2].textContent = grid[i];
  });
  fill("sums", (cells, i) => {
    cells[0].className = cells[2].className = i === action ? "chosen" : "";
    cells[2].textContent = sums[i];
  });
}

function fill(id, write) {
  Array.from(byId(id).rows).forEach((row, i) => write(row.cells, i));
}

function makeRows(id, names) {
  for (const name of names) {
    const row = byId(id).insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head, document.createElement("td"), document.createElement("td"));
  }
}

/** The time of an action, as the shortest of several measurements: a page has other work too. */
function measureSpeed() {
  const times = Array.from({ length: 10 }, () => {
    const start = performance.now();
    for (let i = 0; i < 1000; i++) policy.act(world.state);
    return performance.now() - start;
  });
  byId("speed").textContent = Math.min(...times).toFixed(1);
}

// -- the visitor -----------------------------------------------------------------------------------------------------

function startPush(direction) {
  if (Math.sign(world.push) !== direction) world.pushes += 1;
  world.push = direction * PUSH;
}

function endPush() {
  world.push = 0;
}

function listen() {
  for (const [id, direction] of [["left", -1], ["right", 1]]) {
    byId(id).addEventListener("pointerdown", () => startPush(direction));
    byId(id).addEventListener("keydown", (event) => {
      if ((event.key === " " || event.key === "Enter") && !event.repeat) startPush(direction);
    });
    byId(id).addEventListener("keyup", endPush);
    byId(id).addEventListener("contextmenu", (event) => event.preventDefault());
  }
  byId("scene").addEventListener("pointerdown", (event) => {
    const box = byId("scene").getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width - 0.5) * 5.2;
    startPush(x < world.state[0] ? 1 : -1); // the pointer pushes the cart away
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) window.addEventListener(name, endPush);
  window.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    if (!event.repeat) startPush(event.key === "ArrowLeft" ? -1 : 1);
  });
  window.addEventListener("keyup", (event) => {
    if (event.key.startsWith("Arrow")) endPush();
  });
  byId("pause").addEventListener("click", () => {
    world.isPaused = !world.isPaused;
    byId("pause").textContent = world.isPaused ? "Go on" : "Pause";
  });
}

function run() {
  let last = performance.now();
  let owed = 0; // seconds that the physics are behind
  const frame = (now) => {
    owed += world.isPaused ? 0 : Math.min((now - last) / 1000, 0.1); // a page in the background stands still
    last = now;
    for (; owed >= physics.SECONDS; owed -= physics.SECONDS) advance();
    draw(owed / physics.SECONDS);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

makeRows("inputs", NAMES);
makeRows("sums", ACTIONS);
restart();
listen();
measureSpeed();
run();
