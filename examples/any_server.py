"""A population for a server that is not ours: it loads LoRA folders and says over HTTP what its answers are worth.

    python examples/any_server.py

In place of the server here, which is PyTorch and a page long, stands vLLM, SGLang or anything else that takes a folder
with `adapter_model.safetensors`. It has the base model alone, and it never hears of xgblora.
"""

import json
import tempfile
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import xgblora
from xgblora import demo

WORD, MEMBERS, STEPS = 7, 8, 12
WORDS = torch.randint(5, 400, (8, 8), generator=torch.Generator().manual_seed(0))


class Server(BaseHTTPRequestHandler):
    """POST of the path of a folder: the reward of the base with that adapter, here the log-likelihood of a word."""

    model = AutoModelForCausalLM.from_pretrained(demo.flags()["model_name"])

    @torch.no_grad()
    def do_POST(self):
        folder = self.rfile.read(int(self.headers["Content-Length"])).decode()
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
        update = {name: tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}
        state = self.model.state_dict()
        places = {name: f"{name.removeprefix('base_model.model.')}.weight" for name in names}
        adapted = {places[name]: state[places[name]] + part for name, part in update.items()}
        logits = torch.func.functional_call(self.model, adapted, kwargs={"input_ids": WORDS}).logits
        answer = json.dumps({"reward": float(logits[:, -1].log_softmax(-1)[:, WORD].mean())}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    adapters = xgblora.attach(AutoModelForCausalLM.from_pretrained(demo.flags()["model_name"]), alpha=1.0)
    # the server keeps the base, so the adapter in training is all that a member is
    population = xgblora.Population(adapters, xgblora.Booster(adapters), sigma=0.05, lr=0.03, kind="adapter")
    with tempfile.TemporaryDirectory() as folder, server:
        for step in range(1, STEPS + 1):
            members, rewards = population.ask(MEMBERS), []
            for number in range(MEMBERS):
                members.save_peft(f"{folder}/{number}", number)
                connection = HTTPConnection("127.0.0.1", server.server_port)
                connection.request("POST", "/", f"{folder}/{number}")
                rewards.append(json.load(connection.getresponse())["reward"])
                connection.close()
            told = population.tell(rewards)
            if step % 4 == 0:
                print(f"step {step}: mean reward {told.mean:.2f}, best {told.best:.2f}")
        server.shutdown()


if __name__ == "__main__":
    main()
