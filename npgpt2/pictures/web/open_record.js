// Behind the other scripts: the record that lies in the file is opened.
openRecord(JSON.parse(document.getElementById("data").textContent));
