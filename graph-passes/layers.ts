/** The linear layers of a model: found by the rules, each with its weight's job; layers of one weight share the job. */
import type { PruneSpec } from '../provider/native.js';
import type { Scope } from './graph/graph-view.js';
import { opName } from './graph/node.js';
import type { NodeProto } from './onnx/proto.js';
import { gemm, gemmLeft } from './passes/gemm.js';
import { matmul, matmulLeft } from './passes/matmul.js';
import { type Linear, type LinearRule, nodeLabel, Refusal, type RuleContext, type Trace } from './passes/rule.js';
import type { WeightFiles } from './weight-files.js';
import { valueTypeOf, WeightJob } from './weight-job.js';

/** In the order in which they are tried on a node. */
const LINEAR_RULES: readonly LinearRule[] = [matmul, gemm, matmulLeft, gemmLeft];

export interface Layer {
  scope: Scope;
  node: NodeProto;
  /** Name of the node. */
  name: string;
  /** Name of the stored weight. */
  weightName: string;
  rule: LinearRule;
  linear: Linear;
}

/** A layer with a constant weight that cannot be SparseMatMul. */
export interface RefusedLayer {
  name: string;
  weightName: string;
  reason: string;
}

/** All linear layers of the model, in graph order, and those that look like one but are refused. */
export function findLayers(context: RuleContext, trace: Trace): { layers: Layer[]; refused: RefusedLayer[] } {
  const layers: Layer[] = [];
  const refused: RefusedLayer[] = [];
  for (const scope of context.view.scopes) {
    for (const node of scope.graph.node ?? []) {
      const op = opName(node);
      const rules = LINEAR_RULES.filter(({ ops }) => ops.includes(op));
      const found = rules.length > 0 ? firstMatch(context, scope, node, rules, trace) : undefined;
      if (found instanceof Refusal) {
        refused.push({ name: nodeLabel(node), weightName: node.input?.[1] ?? '', reason: found.reason });
      } else if (found) layers.push(found);
    }
  }
  return { layers, refused };
}

/** The first rule's match; else the first refusal that is worth a word; else nothing. */
function firstMatch(
  context: RuleContext,
  scope: Scope,
  node: NodeProto,
  rules: readonly LinearRule[],
  trace: Trace,
): Layer | Refusal | undefined {
  let refusal: Refusal | undefined;
  for (const rule of rules) {
    const match = rule.check(context, scope, node);
    const name = nodeLabel(node);
    if (!(match instanceof Refusal)) return { scope, node, name, weightName: match.weight.name, rule, linear: match };
    trace({ rule: rule.name, node: name, applied: false, reason: match.reason });
    if (!match.unsurprising) refusal ??= match;
  }
  return refusal;
}

/** Jobs of layers, one for each distinct data and treatment. */
export class WeightJobs {
  private readonly jobs = new Map<string, WeightJob>();

  constructor(
    private readonly files: WeightFiles,
    private readonly prune: PruneSpec | undefined,
  ) {}

  /** The layer's job. `pruned`: whether this layer is to be pruned, if pruning was asked for at all. */
  async of({ linear }: Layer, pruned: boolean): Promise<WeightJob> {
    const { weight, layout, scale, outFeatures, inFeatures } = linear;
    const { path, offset } = await this.files.range(weight.tensor);
    const type = valueTypeOf(weight.tensor.dataType ?? 0);
    const roundedTo = weight.roundedTo === undefined ? undefined : valueTypeOf(weight.roundedTo);
    const prune = pruned ? this.prune : undefined;
    const key = [path, offset, type, outFeatures, inFeatures, layout, scale, roundedTo, Boolean(prune)].join(':');
    let job = this.jobs.get(key);
    if (!job) {
      const segments = [{ path, offset, type, outFeatures, inFeatures, layout }];
      job = new WeightJob({ key, segments, scale, prune, roundedTo });
      this.jobs.set(key, job);
    }
    return job;
  }

  /** All jobs so far. */
  all(): WeightJob[] {
    return [...this.jobs.values()];
  }
}
