"""Ray in its three forms, on one running Ray: actors, compiled graph, Serve."""

from __future__ import annotations

from bench.peers import ray_actors, ray_graph, ray_serve
from bench.peers.protocol import serve

if __name__ == "__main__":
    serve(
        ("ray", "numpy"),
        actors_chain=ray_actors.chain,
        actors_throughput=ray_actors.throughput,
        actors_fanout=ray_actors.fanout,
        graph_chain=ray_graph.chain,
        graph_throughput=ray_graph.throughput,
        serve_throughput=ray_serve.throughput,
    )
