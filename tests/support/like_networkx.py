"""What `egm.energies` asks of a networkx graph: nodes in an order, edges with their data."""


class LikeNetworkx:
    """A graph of nodes 0..n-1 under other names, weights of some edges in their data."""

    def __init__(self, num_nodes, edges, weights=(), names=None):
        self.nodes = list(names or range(num_nodes))
        data = [{"weight": w} for w in weights] + [{}] * (len(edges) - len(weights))
        self._edges = [(self.nodes[a], self.nodes[b], d) for (a, b), d in zip(edges, data, strict=True)]

    def edges(self, data=False):
        return self._edges if data else [edge[:2] for edge in self._edges]
