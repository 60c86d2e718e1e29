// Pins whose custom resource definitions the one-machine control plane serves; nothing of them is compiled.
// Written by hand (`go mod tidy` would empty it); go.sum holds the "Sum" lines that `go mod download -json` prints.
module llm-mesh.dev/tools/crds

go 1.26.8

require (
	github.com/kedacore/keda/v2 v2.21.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
