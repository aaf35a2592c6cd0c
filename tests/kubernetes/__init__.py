"""deploy/kubernetes/, read and played: what a StatefulSet controller and kubelet would do with it, by processes."""
