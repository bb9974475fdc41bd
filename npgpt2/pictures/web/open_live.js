// Behind the other scripts: the model beside the page is loaded.
openLive(JSON.parse(document.getElementById("data").textContent));
