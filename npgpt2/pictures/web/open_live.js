// Runs after the other scripts: loads the model next to the page.
openLive(JSON.parse(document.getElementById("data").textContent));
