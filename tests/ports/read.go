// Reads the raw files of a golden folder and checks every sha256.  go run read.go DIR
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		log.Fatalf("index.tsv: %v", err)
	}
	return n
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: read DIR")
	}
	index, err := os.ReadFile(filepath.Join(os.Args[1], "index.tsv"))
	if err != nil {
		log.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(index), "\n"), "\n")
	at := map[string]int{}
	for i, column := range strings.Split(lines[0], "\t") {
		at[column] = i
	}
	for _, line := range lines[1:] {
		row := strings.Split(line, "\t")
		data, err := os.ReadFile(filepath.Join(os.Args[1], row[at["file"]]))
		if err != nil {
			log.Fatal(err)
		}
		begin := number(row[at["offset"]])
		end := begin + number(row[at["bytes"]])
		if end > len(data) {
			log.Fatalf("%s: has %d bytes, expected %d", row[at["file"]], len(data), end)
		}
		data = data[begin:end]
		if fmt.Sprintf("%x", sha256.Sum256(data)) != row[at["sha256"]] {
			log.Fatalf("%s: sha256 differs", row[at["name"]])
		}
		if row[at["name"]] == "eight/logits" {
			first := math.Float32frombits(binary.LittleEndian.Uint32(data))
			fmt.Println("eight/logits", row[at["shape"]], first)
		}
	}
	fmt.Printf("%d tensors, every sha256 is right\n", len(lines)-1)
}
