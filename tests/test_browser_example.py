"""The page of ``examples/browser``: its physics are Gymnasium's, its policy is the student, and it opens as a file."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import needs_chromium, running_browser
from gymnasium.envs.classic_control import CartPoleEnv

from sb3_qpd import IntegerModel

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "browser"
PAGE = FOLDER / "cartpole.html"
N_STEPS = 500


def episode(student: IntegerModel, seed: int) -> tuple[list[float], list[int], np.ndarray]:
    """Gymnasium's: the first state, the student's actions, and the states that follow in float64."""
    env = CartPoleEnv()
    observation, _ = env.reset(seed=seed)
    first, actions, states = env.state.tolist(), [], []
    for _ in range(N_STEPS):
        actions.append(int(student.predict(observation, deterministic=True)[0]))
        observation, _, has_ended, _, _ = env.step(actions[-1])
        states.append(env.state)
        assert not has_ended
    return first, actions, np.array(states)


@pytest.fixture(scope="module")
def student() -> IntegerModel:
    return IntegerModel.load(FOLDER / "student.npz")


def test_the_page_is_what_the_script_writes(student: IntegerModel) -> None:
    built = runpy.run_path(str(FOLDER / "build.py"))["build"](student, 18_440)
    assert built == PAGE.read_text(encoding="utf-8"), "run python examples/browser/build.py"
    assert student.nbytes == 252 and "All of its 252 bytes" in built
    shown = re.sub("<[^>]*>", "", re.findall('<pre class="bytes".*?</pre>', built, re.DOTALL)[0]).split()
    assert len(shown) == 252 and " ".join(shown).count(student.layers[0].bias.tobytes().hex(" ")) == 1


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here: make emulators installs it (Debian)")
def test_the_physics_are_those_of_gymnasium(student: IntegerModel) -> None:
    episodes = [episode(student, seed) for seed in range(3)]
    given = json.dumps([[first, actions] for first, actions, _ in episodes])
    code = f"import {{ step }} from {json.dumps((FOLDER / 'cartpole.mjs').as_uri())}; console.log(JSON.stringify({given}.map("
    code += "([state, actions]) => actions.map((action) => (state = step(state, action))))))"
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), [states for _, _, states in episodes], rtol=0, atol=1e-9)


@needs_chromium
@pytest.mark.slow
def test_the_page_in_a_browser(student: IntegerModel) -> None:
    with running_browser() as browser:
        for width in (390, 1200):
            for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(16, 21, 28)")):
                browser.resize(width)
                browser.prefer(scheme)
                browser.open(PAGE)
                assert browser.evaluate("document.documentElement.scrollWidth") == width
                assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == background
        assert browser.requests() == [PAGE.as_uri()] and not browser.complaints()
        browser.evaluate("world.isPaused = true")
        for seed in range(2):  # the whole loop in the page: physics and policy
            first, actions, states = episode(student, seed)
            browser.evaluate(f"world.state = {first}")
            taken = "[policy.act(world.state), (advance(), world.state)]"
            played = browser.evaluate(f"Array.from({{ length: {N_STEPS} }}, () => {taken})")
            assert [action for action, _ in played] == actions
            np.testing.assert_allclose([state for _, state in played], states, rtol=0, atol=1e-9)
        assert browser.evaluate("world.falls") == 0
        browser.evaluate(
            "byId('right').dispatchEvent(new PointerEvent('pointerdown')); for (let i = 0; i < 25; i++) advance();"
        )
        browser.evaluate("window.dispatchEvent(new PointerEvent('pointerup')); draw(1);")
        assert browser.evaluate("byId('pushes').textContent") == "1" and browser.evaluate("world.push") == 0
        browser.evaluate("startPush(-1); for (let i = 0; i < 500; i++) advance();")  # nothing holds against that for ever
        assert browser.evaluate("world.falls") > 0 and not browser.complaints()
