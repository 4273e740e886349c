"""iperf3: what one TCP connection carries. It knows no arrays, so it has the same figure for all sizes."""

import json
import subprocess
import time

import measures

SECONDS = 3


def main():
    """Measure."""
    job = measures.job()
    port = str(job["ports"][0])
    server = subprocess.Popen([job["iperf3"], "--server", "--bind", "127.0.0.1", "--port", port, "--one-off"])
    time.sleep(0.5)  # a connection to see whether it listens would be its one
    words = [job["iperf3"], "--client", "127.0.0.1", "--port", port, "--json", "--time", str(SECONDS), "--omit", "1"]
    answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout)
    server.wait(10)
    rate = answer["end"]["sum_received"]["bits_per_second"] / 8e9
    measures.leave(job, answer["start"]["version"].removesuffix("+"), dict.fromkeys(measures.SIZES, rate))


main()
