// Runs after the other scripts: opens the record in this file.
openRecord(JSON.parse(document.getElementById("data").textContent));
