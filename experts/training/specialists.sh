#!/usr/bin/env bash
# Trains the specialists: one low-rank adapter for each institute of MedQuAD that is an expert, and one for
# PubMedQA's conclusions. Run again, it goes on where it stopped.
#
#   experts/training/specialists.sh DATA OUT [NAME …]
#
# DATA holds medquad_{train,dev}.jsonl.gz and pubmedqa_{train,dev}.jsonl.gz; OUT gets NAME.safetensors, its loss curve
# (NAME.loss.csv), the state to resume from and the report (NAME.json: perplexities with and without the adapter on
# dev rows of the same institute). REFERRAL is the binary, THREADS the number of threads.
set -euo pipefail
data=${1:?the directory with the data}
out=${2:?the directory to write}
shift 2
referral=${REFERRAL:-cargo run --release --quiet --}
general="You are a careful assistant in a hospital. Answer the question briefly and plainly."

# NAME, the system prompt under which config/referral.yaml asks it, and where its rows are.
train() {
    local name=$1 system=$2
    shift 2
    if [ -s "$out/$name.json" ]; then
        echo "$name: done before"
        return
    fi
    # The others were given fewer steps than these two for want of time, not because they need fewer.
    local steps=40
    case $name in oncology | genetics) steps=60 ;; esac
    echo "$name"
    $referral train adapter "$@" --out "$out/$name.safetensors" --resume --json \
        --rank 8 --alpha 16 --layers 12 --steps "$steps" --warmup 6 --learning-rate 0.002 --seed 0 \
        --batch-tokens 768 --max-tokens 256 ${THREADS:+--threads "$THREADS"} \
        --system "" --system "$system" --system "$general" >"$out/$name.json.part"
    mv "$out/$name.json.part" "$out/$name.json"
}

institute() {
    train "$1" "$2" --data "$data/medquad_train.jsonl.gz" --dev "$data/medquad_dev.jsonl.gz" --where "expert=$1"
}

specialist() {
    local brief="Answer the question accurately and briefly."
    case $1 in
    cardiopulmonary) institute "$1" "You are a specialist in heart and lung medicine. $brief" ;;
    endocrine_renal_gi) institute "$1" "You are a specialist in endocrinology, nephrology and gastroenterology. $brief" ;;
    general_medicine) institute "$1" "You are a general practitioner. $brief" ;;
    genetics) institute "$1" "You are a clinical geneticist. $brief" ;;
    infectious_disease) institute "$1" "You are a specialist in infectious diseases. $brief" ;;
    neurology) institute "$1" "You are a neurologist. $brief" ;;
    oncology) institute "$1" "You are an oncologist. $brief" ;;
    research_evidence)
        train "$1" "You are a clinical researcher who weighs published evidence. $brief" --answer-field long_answer \
            --data "$data/pubmedqa_train.jsonl.gz" --dev "$data/pubmedqa_dev.jsonl.gz"
        ;;
    *)
        echo "no specialist is called $1" >&2
        exit 2
        ;;
    esac
}

mkdir -p "$out"
if [ $# -eq 0 ]; then
    set -- oncology genetics neurology endocrine_renal_gi cardiopulmonary infectious_disease general_medicine research_evidence
fi
for name in "$@"; do
    specialist "$name"
done
