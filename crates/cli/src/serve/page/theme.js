// Sets the chosen theme before anything is drawn; hence not a module.
try {
  document.documentElement.dataset.theme = localStorage.getItem("lapidary-theme") ?? "system";
} catch {
  // Storage is closed: the system's theme.
}
