#!/usr/bin/env bash
# The experiments of Li, Pei and Guo 2021: Tables 4 to 7 and Figs. 4 to 9, from one preparation of the data.
#
#   COMPLETE=./CC-CCII paper.sh          everything, one cell after another; the same command again continues
#   COMPLETE=./CC-CCII SIZE=96 EPOCHS=5 DEPTHS="2 4 8" paper.sh          the same in small
#
# In parts, as paper.sbatch uses them:
#   paper.sh prepare       pack the slices
#   paper.sh list          the cells to train, one a line: name, images, architecture, depth, batch
#   paper.sh train N       train the N-th of them, counted from 1, or continue it
#   paper.sh tables        all tables and figures of what is finished; cells that are not are marked missing
#
# It is installed with ctcovid: bash "$(python3 -c 'from ctcovid import experiments; print(*experiments.__path__)')/paper.sh"
# Every other setting of a command is an environment variable, such as CTCOVID_DEVICE=cuda:1 or CTCOVID_TRAIN_MICRO_BATCH=8.
set -euo pipefail

# Of these, what has been set outside: a word that no cell has is worth a line then.
given="${DEPTHS+DEPTHS} ${BATCHES+BATCHES} ${MODELS+MODELS}"

COMPLETE=${COMPLETE:-CC-CCII}     # folder with complete CT, CLASS/patient/scan/slices
SEGMENTED=${SEGMENTED:-}          # Table 4: folder with segmented CT; the same one where both are mixed, as in CC-CCII
SIZE=${SIZE:-512}                 # pixels per side of a slice
EPOCHS=${EPOCHS:-20}
DEPTHS=${DEPTHS:-2 4 8 16 32 64}  # cells of other depths, batches and models stay missing; Table 7 is of depth 4 and batch 32
BATCHES=${BATCHES:-8 32 64}
architectures="r3d18 r2plus1d18 r3d34 r2plus1d34 r3d50"
MODELS=${MODELS:-$architectures}
OUT=${OUT:-paper-$SIZE}           # folder for all that is made

# Table 4 is about volumes of the last depth: 64 slices in the paper.
fourth=$(printf '%s\n' $DEPTHS | tail -n 1)
best=r3d18-d4-b32                 # Figs. 6 to 9 show the paper's best model

# The rows of the paper's tables in their order: table, name of the run, images, architecture, depth, batch.
rows() {
    local images depth cell arch
    for images in complete same-number segmented; do row 4 $images r3d18 "$fourth" 8; done
    for depth in 2 4 8 16 32 64; do row 5 complete r3d18 $depth 8; done
    for cell in "2 32" "2 64" "4 32" "4 64" "8 32" "16 32"; do row 6 complete r3d18 "${cell% *}" "${cell#* }"; done
    for arch in $architectures; do row 7 complete $arch 4 32; done
}

row() {
    local name=$3-d$4-b$5
    if [ "$2" != complete ]; then name=$name-$2; fi
    echo "$1 $name $2 $3 $4 $5"
}

folder_of() {
    case $1 in
        complete) echo "$COMPLETE" ;;
        segmented) echo "$SEGMENTED" ;;
        # As many complete slices as there are segmented ones, where there are any.
        same-number) if [ -n "$SEGMENTED" ]; then echo "$COMPLETE"; fi ;;
    esac
}

# What is to be trained: rows that stand in two tables once, and those alone that the settings above ask for.
cells() {
    local table name images arch depth batch
    rows | while read -r table name images arch depth batch; do
        if has "$DEPTHS" "$depth" && has "$BATCHES" "$batch" && has "$MODELS" "$arch" && [ -n "$(folder_of "$images")" ]; then
            echo "$name $images $arch $depth $batch"
        fi
    done | awk '!seen[$0]++'
}

has() {
    case " $1 " in *" $2 "*) return 0 ;; *) return 1 ;; esac
}

refuse() {
    echo "paper.sh: $1" >&2
    exit 2
}

# Before any work: numbers are numbers, and models are those of the paper.
require_sense() {
    local name word
    for name in SIZE EPOCHS DEPTHS BATCHES; do
        for word in ${!name}; do
            case $word in
                0* | *[!0-9]*) refuse "$name: '$word' is not a number above 0, as in $name=\"4\"." ;;
            esac
        done
    done
    for word in $MODELS; do
        has "$architectures" "$word" || refuse "MODELS: '$word' is none of the paper's architectures, which are $architectures."
    done
}

# There is something to train. Settings that leave no cell, or that no cell has, are said.
require_cells() {
    local name word found
    found=$(cells)
    if [ -z "$found" ]; then
        refuse "no cell of the paper has DEPTHS=\"$DEPTHS\", BATCHES=\"$BATCHES\" and MODELS=\"$MODELS\". \
Its batches are 8, 32 and 64; Table 7, the only one of models other than r3d18, is of depth 4 and batch 32."
    fi
    for name in $given; do
        for word in ${!name}; do
            if ! echo "$found" | awk -v name="$name" -v word="$word" '
                { value["MODELS"] = $3; value["DEPTHS"] = $4; value["BATCHES"] = $5; if (value[name] == word) found = 1 }
                END { exit !found }'; then
                echo "paper.sh: no cell has $word of $name. Table 7, the only one of models other than r3d18, is of depth 4 and batch 32." >&2
            fi
        done
    done
}

# Table 1 balances its classes; the second row of Table 4 has as many slices as Table 2, in each class and part.
prepare() {
    local images folder file code choice
    for images in complete segmented same-number; do
        folder=$(folder_of $images) file=$OUT/$images.h5 code=0
        case $images in
            complete) choice=(--images complete --balance) ;;
            segmented) choice=(--images segmented) ;;
            same-number) choice=(--images complete --same-as "$OUT/segmented.h5") ;;
        esac
        if [ -n "$folder" ] && [ ! -f "$file" ]; then
            ctcovid prepare "$folder" --size "$SIZE" --output "$file" "${choice[@]}" || code=$?
            # With 4 some scans could not be used and were left out; the others are packed.
            if [ $code -ne 0 ] && [ $code -ne 4 ]; then exit $code; fi
        fi
    done
}

# The training takes this shell's place, so that signals reach it and its exit code goes out.
train() {
    local line name images arch depth batch
    line=$(cells | awk -v number="$1" 'NR == number')
    if [ -z "$line" ]; then
        echo "paper.sh: there is no cell $1; paper.sh list shows them." >&2
        exit 2
    fi
    read -r name images arch depth batch <<<"$line"
    echo "Cell $1: $line" >&2
    exec ctcovid train --data "$OUT/$images.h5" --runs "$OUT/runs" --name "$name" --arch "$arch" --depth "$depth" \
        --batch "$batch" --epochs "$EPOCHS" --resume
}

# Whether a run has been trained to the end that is asked for.
is_finished() {
    [ -f "$OUT/runs/$1/model.json" ] && grep -Eq "\"epochs\": $EPOCHS(,|\$)" "$OUT/runs/$1/model.json"
}

# Score runs into a folder. The paper's intervals are mean ± 1.96 standard deviations of the bootstrap.
score() {
    local folder=$1 code=0
    shift
    rm -rf "$folder"
    ctcovid evaluate "$@" --runs "$OUT/runs" --ci normal --output "$folder" >&2 || code=$?
    # Stopped by a signal or Ctrl-C.
    case $code in 75 | 130) exit "$code" ;; esac
    return "$code"
}

# The images of Table 4 are of different patients, so its models are scored each for itself, as in the paper, which makes no test there.
tables() {
    local table name finished usable
    for table in 4 5 6 7; do
        finished=()
        for name in $(rows | awk -v table=$table '$1 == table { print $2 }'); do
            if is_finished "$name"; then finished+=("$name"); fi
        done
        rm -rf "$OUT/table-$table"
        if [ $table -eq 4 ] && [ ${#finished[@]} -gt 0 ]; then
            for name in "${finished[@]}"; do score "$OUT/table-4/$name" "$name" || true; done
        elif [ ${#finished[@]} -gt 0 ] && ! score "$OUT/table-$table" "${finished[@]}"; then
            # One that cannot be scored, for instance because no scan is deep enough, does not stop the others.
            usable=()
            for name in "${finished[@]}"; do
                if score "$OUT/table-$table" "$name"; then usable+=("$name"); fi
            done
            rm -rf "$OUT/table-$table"
            if [ ${#usable[@]} -gt 0 ]; then score "$OUT/table-$table" "${usable[@]}"; fi
        fi
    done
    saliency
    rows | python3 "$(dirname "$0")/paper_tables.py" "$OUT" $best
}

# Fig. 7: the best model's saliency for three patients of each class, of the test part.
saliency() {
    local predictions=$OUT/table-7/predictions-$best.csv scans=() scan
    rm -rf "$OUT/figure-7"
    if [ ! -f "$predictions" ]; then return; fi
    while read -r scan; do scans+=("$COMPLETE/$scan"); done < <(
        awk -F, 'NR > 1 && !seen[$4, $1]++ && count[$4]++ < 3 { print ($2 ~ "/") ? $2 : $4 "/" $1 "/" $2 }' "$predictions")
    ctcovid explain "${scans[@]}" --model $best --runs "$OUT/runs" --output "$OUT/figure-7" >&2 ||
        echo "Fig. 7 is not complete, see above." >&2
}

everything() {
    local number code failed=""
    require_cells
    prepare >&2
    for number in $(cells | awk '{ print NR }'); do
        code=0
        (train "$number") >&2 || code=$?
        # Stopped by a signal or Ctrl-C: the same command again resumes.
        if [ $code -eq 75 ] || [ $code -eq 130 ]; then exit $code; fi
        if [ $code -ne 0 ]; then failed="$failed $number"; fi
    done
    tables
    if [ -n "$failed" ]; then
        echo "paper.sh: these cells failed, for the reasons above:$failed" >&2
        exit 4
    fi
}

# A signal to the shell alone stops it after the running command; one to the group stops that command as well.
trap 'exit 75' TERM USR1

require_sense
case ${1:-everything} in
    everything | tables) "${1:-everything}" ;;
    prepare)
        require_cells
        prepare
        ;;
    list)
        require_cells
        cells
        ;;
    train) train "${2:-without a number}" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
