// Before anything is drawn: the theme that was chosen here. Nothing chosen means what the system says.
document.documentElement.dataset.theme = localStorage.getItem("llm-mesh-theme") || "auto";
