#!/usr/bin/env bash
# A cluster on this machine (kind), with KFP and Triptych on it. Needs kind, docker, kubectl and an installed triptych.
#   infra/kind/up.sh             all of it; safe to repeat
#   kind delete cluster --name triptych
# DATA_IMAGE and TORCH_IMAGE name images that docker has; without them infra/images builds them.
set -euo pipefail
cd "$(dirname "$0")/../.."
cluster=triptych namespace=kubeflow kfp=${KFP_VERSION:-2.17.0} work=${WORK:-.triptych/kind}
node=${KIND_NODE:-kindest/node:v1.36.0}
data=${DATA_IMAGE:-triptych-data:checkout} torch=${TORCH_IMAGE:-triptych-torch:checkout}
context=kind-$cluster
k() { kubectl --context "$context" -n "$namespace" "$@"; }
mkdir -p "$work"

for program in kind docker kubectl triptych; do
  command -v "$program" > /dev/null || { echo "error: $program is not installed" >&2; exit 2; }
done
[ -n "${DATA_IMAGE:-}" ] || python -m infra.images.build triptych-data
[ -n "${TORCH_IMAGE:-}" ] || python -m infra.images.build triptych-torch

# A registry beside the cluster, so that images have digests.
docker inspect triptych-registry > /dev/null 2>&1 ||
  docker run -d --restart=always -p 127.0.0.1:5001:5000 --name triptych-registry registry:2 > /dev/null
if ! kind get clusters | grep -qx "$cluster"; then
  kind create cluster --name "$cluster" --image "$node" --config infra/kind/cluster.yaml
fi
docker network connect kind triptych-registry 2> /dev/null || true
for machine in $(kind get nodes --name "$cluster"); do
  docker exec "$machine" mkdir -p /etc/containerd/certs.d/localhost:5001
  echo '[host."http://triptych-registry:5000"]' |
    docker exec -i "$machine" cp /dev/stdin /etc/containerd/certs.d/localhost:5001/hosts.toml
done

digest() { # of an image that was pushed
  docker tag "$1" "localhost:5001/$2:local"
  docker push -q "localhost:5001/$2:local" > /dev/null
  docker inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "localhost:5001/$2:local" |
    sed -n "s|^localhost:5001/$2@||p" | head -1
}
data_digest=$(digest "$data" triptych-data) torch_digest=$(digest "$torch" triptych-torch)

manifests=github.com/kubeflow/pipelines/manifests/kustomize
kubectl --context "$context" apply -k "$manifests/cluster-scoped-resources?ref=$kfp"
kubectl --context "$context" wait --for=condition=established --timeout=120s crd/workflows.argoproj.io
kubectl --context "$context" apply -k "$manifests/env/platform-agnostic?ref=$kfp"
k rollout status deployment/ml-pipeline --timeout=900s
k rollout status deployment/seaweedfs --timeout=600s

# Keys, ledger and channel: made here, the root key stays here.
if ! k get configmap triptych-trust > /dev/null 2>&1; then
  home=$work/home
  triptych ledger init --work-dir "$home"
  keys=$home/lineage/keys
  for role in run gate promotion witness; do
    k create secret generic "triptych-$role-key" --from-file="$keys/$role.pem" --from-file="$keys/$role.pub" \
      --dry-run=client -o yaml | k apply -f -
  done
  password=$(python -c 'import secrets; print(secrets.token_urlsafe(24))')
  url="postgresql+psycopg://postgres:$password@triptych-postgres:5432"
  k get secret triptych-database > /dev/null 2>&1 || k create secret generic triptych-database \
    --from-literal=password="$password" --from-literal=mlflow="$url/postgres" --from-literal=ledger="$url/ledger"
  decode() { k get secret mlpipeline-minio-artifact -o "jsonpath={.data.$1}" | base64 -d; }
  k get secret triptych-s3 > /dev/null 2>&1 || k create secret generic triptych-s3 \
    --from-literal=AWS_ACCESS_KEY_ID="$(decode accesskey)" --from-literal=AWS_SECRET_ACCESS_KEY="$(decode secretkey)" \
    --from-literal=AWS_ENDPOINT_URL_S3="http://seaweedfs.$namespace:9000" --from-literal=AWS_DEFAULT_REGION=us-east-1
  k get secret triptych-serve-key > /dev/null 2>&1 ||
    k create secret generic triptych-serve-key --from-literal=api-key="$(python -c 'import secrets; print(secrets.token_urlsafe(24))')"
  root=$(python -c 'import json,sys; print(json.load(open(sys.argv[1]))["keyid"])' "$keys/root.pub")
  k create configmap triptych-trust --from-literal=root-id="$root" --from-file="$home/lineage/channel-root.json"
fi

overlay=$work/overlay
rm -rf "$overlay" && mkdir -p "$overlay"
kubectl kustomize infra/kubernetes/overlays/kind |
  sed -e "s|triptych-data@sha256:0*|triptych-data@$data_digest|" -e "s|triptych-torch@sha256:0*|triptych-torch@$torch_digest|" \
    > "$overlay/all.yaml"
k delete job triptych-migrate --ignore-not-found
k apply --server-side --force-conflicts -f "$overlay/all.yaml"

# The ledger and the embedded default's data and models go in by a pod of their own.
k rollout status statefulset/triptych-postgres --timeout=300s
k exec statefulset/triptych-postgres -- psql -U postgres -tc "select 1 from pg_database where datname = 'ledger'" |
  grep -q 1 || k exec statefulset/triptych-postgres -- createdb -U postgres ledger
sed "s|IMAGE|localhost:5001/triptych-data@$data_digest|" infra/kind/load.yaml | k apply -f -
k wait --for=condition=Ready pod/triptych-load --timeout=300s
tar -C examples -h -cf - avatars | k exec -i triptych-load -- tar -C /shared -xf -
# The policy by content, the same as in the cluster, where the files lie elsewhere.
printf 'extends: %s\nevaluation: {limit: 64}\n' "$PWD/examples/avatars/retrain.yaml" > "$work/policy.yaml"
triptych policy set --work-dir "$work/home" --config "$work/policy.yaml" --reason "one machine's first policy"
triptych ledger export --work-dir "$work/home" "$work/ledger.jsonl"
k cp "$work/ledger.jsonl" triptych-load:/tmp/ledger.jsonl
k cp "$work/ledger.root.pub" triptych-load:/tmp/ledger.root.pub
k exec triptych-load -- sh -c 'triptych ledger import /tmp/ledger.jsonl /tmp/ledger.root.pub --into "$TRIPTYCH_LEDGER"' ||
  echo "the ledger is there already"
tar -C "$work/home/lineage" -cf - channel | k exec -i triptych-load -- tar -C /tmp -xf -
k exec triptych-load -- python -c "
import fsspec; s = fsspec.filesystem('s3'); s.put('/tmp/channel/', 'mlpipeline/triptych/channel/', recursive=True)"
k delete pod triptych-load --wait=false
k wait --for=condition=complete job/triptych-migrate --timeout=600s
k rollout status deployment/triptych-mlflow --timeout=600s
triptych doctor --context "$context" --namespace "$namespace" || true
echo "run now: kubectl --context $context -n $namespace create job --from=cronjob/triptych-retrain retrain-by-hand"
